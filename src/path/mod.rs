//! Which way to reach each peer: candidates, probes, the chosen path, the report on our own network.
