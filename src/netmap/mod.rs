//! What the coordinator told us, made safe: the map, deltas, the packet filter in domain terms.
