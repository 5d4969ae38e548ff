//! Other hosts: namespaces beside the test's own, each at the other end of a cable.

use std::fs::File;

use crate::common::*;

/// A neighbour namespace, removed when dropped.
pub(crate) struct Neighbour {
    name: &'static str,
}

/// Where sockets are made.
pub(crate) struct Sockets {
    namespace: Option<&'static str>,
}

impl Neighbour {
    /// Makes the namespace and a cable of this name to it.
    pub(crate) fn beside(name: &'static str, cable: &str) -> Self {
        run(&format!("ip netns del {name}"));
        sh(&format!("ip netns add {name} && ip link add {cable} type veth peer name {cable} netns {name}"));
        sh(&format!("ip link set {cable} up"));
        let neighbour = Self { name };
        neighbour.sh(&format!("ip link set lo up && ip link set {cable} up"));
        neighbour
    }

    pub(crate) fn sh(&self, command: &str) -> String {
        let (name, command) = (self.name, command.replace('\'', r"'\''"));
        sh(&format!("ip netns exec {name} sh -c '{command}'"))
    }

    /// Runs code on a thread that lives in this namespace.
    pub(crate) fn within<T: Send + 'static>(&self, code: impl FnOnce() -> T + Send + 'static) -> T {
        self.socket_factory().within(code)
    }

    pub(crate) fn pings(&self, from: &str, to: &str) -> bool {
        run(&format!("ip netns exec {} ping -c 1 -W 2 -I {from} {to}", self.name)).status.success()
    }

    pub(crate) fn socket_factory(&self) -> Sockets {
        Sockets { namespace: Some(self.name) }
    }
}

impl Sockets {
    /// In the test's own namespace.
    pub(crate) fn here() -> Self {
        Self { namespace: None }
    }

    pub(crate) fn within<T: Send + 'static>(&self, code: impl FnOnce() -> T + Send + 'static) -> T {
        let Some(name) = self.namespace else { return code() };
        let namespace = File::open(format!("/run/netns/{name}")).unwrap();
        let thread = std::thread::spawn(move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            code()
        });
        thread.join().unwrap()
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        run(&format!("ip netns del {}", self.name));
    }
}
