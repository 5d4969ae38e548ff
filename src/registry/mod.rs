//! The coordinator's model: users, nodes, keys and routes; commands in, events and per-node maps out.
