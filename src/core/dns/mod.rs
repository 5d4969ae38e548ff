//! Nothing yet. MagicDNS has its place here: query in; answer, forward or refuse out; which suffix goes where.
