//! An ordinary user with the two capabilities and nothing else.

use crate::common::*;

#[test]
fn all_of_it_works_for_an_ordinary_user_with_two_ambient_capabilities() {
    in_namespace(Needs::WireGuard, || async {
        let program = std::env::current_exe().unwrap();
        // Tests that leave the namespace as they found it: they run in this one.
        let tests = [
            "device::a_device_is_made_as_asked_and_read_back_as_made",
            "firewall::a_table_is_read_back_as_it_was_written",
            "paths::what_the_agent_sends_and_receives_itself_is_what_it_should_be",
            "whole::a_whole_wish_comes_true_and_cleaning_up_leaves_no_trace",
        ];

        let output = sh(&format!(
            "{STAY}=1 setpriv --reuid 990 --regid 990 --clear-groups --bounding-set -all,+net_admin,+net_raw \
             --inh-caps +net_admin,+net_raw --ambient-caps +net_admin,+net_raw --no-new-privs \
             {} --test-threads=1 --exact {}",
            program.display(),
            tests.join(" "),
        ));

        assert!(output.contains("test result: ok. 4 passed"), "{output}");
    });
}
