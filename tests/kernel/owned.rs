//! A table that only its agent can change, where the kernel has that.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;

use warren_core::plan::{Firewall, FirewallStep, Kernel, ObservedFirewall, Step};
use warren_linux::LinuxKernel;

use crate::common::*;

/// Set for the process that is to be killed.
const HOLD: &str = "WARREN_KERNEL_HOLD";

/// The first kernel where a table can have an owner and outlive it.
const SINCE: (u32, u32) = (6, 9);

/// A kernel that has put a table in place; none, said aloud, where it cannot own one.
async fn owner() -> Option<(LinuxKernel, Arc<Firewall>)> {
    let release = sh("uname -r");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok());
    let version = (numbers.next().unwrap(), numbers.next().unwrap());
    if version < SINCE {
        println!("skipped: Linux {} lets nobody own a table that persists; a flush is repaired there", release.trim());
        return None;
    }
    let mut kernel = LinuxKernel::new().unwrap();
    let firewall = wish().firewall.unwrap();
    apply(&mut kernel, [Step::Firewall(FirewallStep::Replace(firewall.clone()))]).await;
    Some((kernel, firewall))
}

fn refused(command: &str) {
    let output = run(command);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("Operation not permitted"), "{command}: {said}");
}

#[test]
fn nobody_else_can_flush_delete_or_change_the_table() {
    in_namespace(Needs::Namespace, || async {
        let Some((mut kernel, firewall)) = owner().await else { return };
        sh("nft add table inet other");

        sh("nft flush ruleset");

        assert_eq!(sh("nft list tables").trim(), "table inet warren");
        refused("nft delete table inet warren");
        refused("nft insert rule inet warren overlay accept");
        refused("nft add element inet warren hosts4 '{ 100.64.0.77 : goto class_0000000000000001 }'");
        assert_eq!(observe(&mut kernel).await.firewall, ObservedFirewall::Table(firewall.clone()));
        let mut more = Firewall::clone(&firewall);
        more.hosts.insert("100.64.0.9".parse().unwrap(), warren_core::plan::ClassId(1));
        let more = Arc::new(more);
        apply(&mut kernel, [Step::Firewall(FirewallStep::Update { from: firewall, to: more.clone() })]).await;
        assert_eq!(observe(&mut kernel).await.firewall, ObservedFirewall::Table(more));
        apply(&mut kernel, [Step::Firewall(FirewallStep::Delete)]).await;
        assert_eq!(sh("nft list ruleset"), "");
    });
}

#[test]
fn a_killed_owner_leaves_the_table_as_it_is_and_the_next_takes_it_over() {
    in_namespace(Needs::Namespace, || async {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "owned::what_is_killed", "--nocapture"])
            .env(STAY, "1")
            .env(HOLD, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let said = lines.find(|line| line.contains("skipped") || line.contains("held")).unwrap();
        if said.contains("skipped") {
            println!("{said}");
            child.wait().unwrap();
            return;
        }
        let chains = || sh("nft list table inet warren | sed '/flags/d; /^table/d'");
        let before = chains();
        let mut next = LinuxKernel::new().unwrap();
        let error = next.apply(&Step::Firewall(FirewallStep::Delete)).await.unwrap_err();
        assert!(error.reason.contains("another process owns the table"), "{error}");

        child.kill().unwrap();
        child.wait().unwrap();

        assert_eq!(chains(), before, "the table filters on");
        let firewall = wish().firewall.unwrap();
        assert_eq!(observe(&mut next).await.firewall, ObservedFirewall::Table(firewall));
        sh("nft flush ruleset");
        assert_eq!(chains(), before, "it has an owner again");
        // That one leaves it too, and what cleans up after both is nobody's owner yet.
        drop(next);
        apply(&mut LinuxKernel::new().unwrap(), [Step::Firewall(FirewallStep::Delete)]).await;
        assert_eq!(sh("nft list ruleset"), "");
    });
}

/// The process that the test above starts and kills.
#[test]
fn what_is_killed() {
    if std::env::var_os(HOLD).is_none() {
        return;
    }
    in_namespace(Needs::Namespace, || async {
        let Some(_owner) = owner().await else { return };
        println!("held");
        std::future::pending().await
    });
}

#[test]
fn an_operator_may_choose_to_share_the_table() {
    in_namespace(Needs::Namespace, || async {
        let mut kernel = sharing();
        apply(&mut kernel, [Step::Firewall(FirewallStep::Replace(wish().firewall.unwrap()))]).await;
        sh("nft insert rule inet warren overlay accept");
        sh("nft flush ruleset");
        assert_eq!(observe(&mut kernel).await.firewall, ObservedFirewall::Absent);
    });
}
