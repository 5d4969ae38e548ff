//! The policy: HuJSON text in; who sees whom, packet filters, grants, SSH rules and approvals out.
