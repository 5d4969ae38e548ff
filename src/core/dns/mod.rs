//! MagicDNS: query in; answer, forward or refuse out; which suffix goes where.
