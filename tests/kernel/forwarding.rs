//! The kernel's switches that let packets pass: what is changed is written down, and given back.

use std::collections::BTreeMap;
use std::path::Path;

use warren_core::plan::{Desired, Forwarding, ForwardingStep, Kernel, Step, Switch};
use warren_linux::LinuxKernel;

use crate::common::*;

/// A link as the agent may find it: dots in its name, and one that is a router's already.
const SCENE: &str = "ip link add lan.7 type veth peer name far && ip link set lan.7 up && ip link set far up && \
    sysctl -q -w net.ipv6.conf.far.forwarding=1";

#[test]
fn each_switch_is_given_back_by_whoever_comes_next() {
    in_namespace(Needs::Namespace, || async {
        sh(SCENE);
        let folder = tempfile::tempdir().unwrap();
        let record = folder.path().join("forwarding");
        let before = switches(&mut with_record(&record)).await;

        converge(&mut with_record(&record), &wish()).await;
        let on = switches(&mut with_record(&record)).await;
        assert_eq!([on[&Switch::Ipv4("lan.7".into())], on[&Switch::Ipv4("all".into())]], [1, 0]);
        assert_eq!(on[&Switch::Ipv4("far".into())], 0, "it leads to nothing that is carried");
        match on.get(&Switch::Ipv6Forced("lan.7".into())) {
            Some(forced) => assert_eq!([*forced, on[&Switch::Ipv6("all".into())]], [1, 0]),
            None => {
                assert_eq!([on[&Switch::Ipv6("all".into())], on[&Switch::AcceptRa("lan.7".into())]], [1, 2]);
                assert_eq!(on[&Switch::AcceptRa("far".into())], 1, "it heard no routers before");
            }
        }

        // A link keeps its number under another name.
        sh("ip link set lan.7 down && ip link set lan.7 name renamed && ip link set renamed up");
        converge(&mut with_record(&record), &Desired::default()).await;
        sh("ip link set renamed down && ip link set renamed name lan.7 && ip link set lan.7 up");
        assert_eq!(switches(&mut with_record(&record)).await, before);
        assert!(!record.exists());
    });
}

#[test]
fn what_cannot_be_written_down_is_not_changed() {
    in_namespace(Needs::Namespace, || async {
        sh(SCENE);
        let folder = tempfile::tempdir().unwrap();
        let mut kernel = with_record(&folder.path().join("not there/forwarding"));
        let before = switches(&mut kernel).await;
        let step = Step::Forwarding(ForwardingStep::Set(Switch::Ipv4("lan.7".into())));
        let error = kernel.apply(&step).await.unwrap_err();
        assert!(error.operation.contains("net.ipv4.conf.lan/7.forwarding"), "{error}");
        assert_eq!(switches(&mut kernel).await, before);
    });
}

/// As in a container: what is read-only there has another way of IPv4, and is told of IPv6.
#[test]
fn behind_a_read_only_proc_sys_ipv4_is_switched_all_the_same() {
    in_namespace(Needs::Namespace, || async {
        sh(SCENE);
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        sh("mount --make-rprivate / && mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys");
        let folder = tempfile::tempdir().unwrap();
        let mut kernel = with_record(&folder.path().join("forwarding"));
        let before = switches(&mut kernel).await;
        converge(&mut kernel, &wish()).await;
        let observed = kernel.observe().await.unwrap();
        assert_eq!(observed.forwarding.values[&Switch::Ipv4("lan.7".into())], 1);
        let command = wish().forwarding.to_type(&observed.forwarding).unwrap();
        assert!(command.starts_with("sysctl -w ") && command.contains("net.ipv6.conf."), "{command}");
        converge(&mut kernel, &Desired::default()).await;
        assert_eq!(switches(&mut kernel).await, before);
    });
}

fn wish() -> Desired {
    let lan = || ["lan.7".to_owned()].into();
    Desired { forwarding: Forwarding { v4: lan(), v6: lan() }, ..Desired::default() }
}

fn with_record(file: &Path) -> LinuxKernel {
    LinuxKernel::new().unwrap().keep_record(file.to_owned())
}

async fn switches(kernel: &mut LinuxKernel) -> BTreeMap<Switch, u32> {
    kernel.observe().await.unwrap().forwarding.values
}
