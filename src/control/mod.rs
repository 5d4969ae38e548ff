//! Client half of the control protocol: log-in, map poll, re-key, back-off.
