//! How much the coordinator takes from strangers, each bound with its reason.
//!
//! What somebody else can take of us, of the relay's part too; a test holds that each bound is there and each test.
//!
//! | resource | who can take it | bound | given back | test |
//! | --- | --- | --- | --- | --- |
//! | connections, descriptors | anybody | a share of a site (`SITE_SHARE`, `SITE_LEAST`), a quarter kept for nodes (`KEPT`), some files for all else (`OTHER_FILES`) | `HEAD_TIME`, `TLS_TIME`; the oldest stranger makes room | src/shell/places.rs::strangers_of_one_site_have_a_share_and_others_find_room |
//! | places of nodes | anybody | none are for strangers | as above | tests/coordinator/abuse.rs::silent_connections_make_room_and_cut_off_no_node |
//! | bytes of a request head | anybody | `HEAD_BYTES`, `HEADERS` | the connection ends | tests/coordinator/abuse.rs::a_head_without_end_is_cut_off |
//! | handshakes | an address | `handshake_rate` a second | the bucket fills again; `RATED` are remembered | src/shell/rate.rs::an_address_gets_its_burst_and_then_its_rate |
//! | memory of rates | many addresses | `RATED` | the least busy are forgotten | src/shell/rate.rs::a_flood_of_addresses_stays_within_the_bound |
//! | connections of a machine | a machine | `MACHINE_CONNECTIONS` | the oldest ends | src/coordinator/face/node/machines.rs::the_oldest_of_too_many_connections_of_a_machine_ends_and_a_machine_without_any_is_forgotten |
//! | requests at once, idle channels | a machine | `STREAMS`, `RECEIVE_WINDOW`, `IDLE_TIME` | the connection ends | tests/coordinator/abuse.rs::garbage_inside_the_channel_closes_it |
//! | requests a second | a machine | `MACHINE_RATE`, `MACHINE_BURST` | the bucket fills again | tests/coordinator/abuse.rs::a_machine_that_asks_without_end_is_put_off_and_others_are_not |
//! | bytes of a body | a machine | `MACHINE_BODY_BYTES`, `LARGE_BODIES` at once, `BODY_TIME` | when it is read | tests/coordinator/abuse.rs::a_body_past_its_limit_is_refused_before_it_is_kept |
//! | the registry's time | a machine | what it says is cut before (`SHOWN`, `HOSTINFO`), `AUTH_KEY_BYTES`, `REGISTRATION_RATE` a site | none is held | src/core/registry/tests/joining.rs::what_a_stranger_says_of_itself_is_cut_before_it_is_looked_at |
//! | lines of the log | a machine, a site | `LINE_RATE`, `LINE_BURST`, `NOTICE_RATE` | counted where not written | tests/coordinator/abuse.rs::what_a_stranger_says_of_itself_fills_neither_log_nor_list |
//! | places of machines that wait | a site | `PENDING_OF_SITE` of `PENDING` | an hour; who waited longest where most wait makes room | src/core/registry/tests/joining.rs::strangers_of_one_address_that_wait_keep_out_nobody_else |
//! | attempts to sign in | a site | `ATTEMPTS_OF_SITE` of `ATTEMPTS` | `ATTEMPT_TIME`; the oldest where most are makes room | src/coordinator/service/sign_in/attempts.rs::attempts_of_one_address_push_out_their_own_and_many_addresses_those_where_most_are |
//! | what a provider answers | a provider | `ANSWER_BYTES`, no redirects | `PATIENCE` | tests/coordinator/sign_in.rs::a_provider_that_is_away_slow_or_leads_astray_takes_nothing_else_with_it |
//! | browsers in which somebody is signed in | a user | `SESSIONS_OF_USER` | `SESSION`, `IDLE`; the one unused longest makes room | src/core/registry/tests/sign_in.rs::a_browser_has_one_session_and_a_user_a_bounded_number |
//! | a map that is not read | a node | a piece (`PIECE_BYTES`) and what is its own of one map | a newer map cuts it; `STALL_TIME` | tests/coordinator/abuse.rs::maps_that_are_asked_for_and_never_read_cost_little_and_the_oldest_connection_of_a_machine_ends |
//! | messages that wait for a node | a node | `STREAM_QUEUE` | the stream ends | tests/coordinator/maps.rs::a_node_that_reads_too_slowly_is_cut_off_and_holds_nobody_up |
//! | commands that wait for the disk | anybody | `QUEUE` | when the disk answers; 429 until then | src/coordinator/store/turns.rs::a_disk_that_does_not_answer_fills_no_memory |
//! | the journal | whoever may change something, a machine that joins | `JOURNAL` entries, `LISTED` items of a list | the oldest give way | src/coordinator/store/turns.rs::the_oldest_entries_of_the_journal_give_way |
//! | everybody's maps | a node | a change each two seconds after `BURST` | the last word is told late | src/core/registry/tests/liveness.rs::a_node_that_never_stops_talking_is_passed_on_every_two_seconds_and_its_last_word_counts |
//! | everybody's maps | a node | `ENDPOINTS`, `ROUTES`, `TAGS`, `HOSTINFO` | when it says less | src/core/registry/tests/maps.rs::a_node_that_says_too_much_is_cut_to_its_limits |
//! | another's disco key | a node | none: whose it was first | when the holder has another or is gone | src/core/registry/tests/liveness.rs::a_disco_key_is_whose_it_was_first_until_that_node_has_another_or_is_gone |
//! | another's stream | a copy of a node | `RETURNS`, then one request each `PUT_OFF` | ten minutes after the last sign | tests/coordinator/presence.rs::two_machines_with_one_key_are_named_to_the_operator_and_slowed |
//! | streams of nodes that are gone | anybody | `STREAMS` of a place | `GOODBYE_TIME` | tests/coordinator/maps.rs::the_goodbye_is_held_so_that_a_client_does_not_ask_for_it_again_at_once_and_ends_with_the_server |
//! | introductions to the relay | anybody | `CLIENT_INFO` bytes, a stranger's place | `INTRODUCTION` | tests/relay/abuse.rs::introductions_that_are_never_finished_cost_little |
//! | relay connections | a key | `CONNECTIONS_OF_KEY` | when one leaves | src/core/derp/server/tests.rs::a_flood_of_one_key_is_bounded |
//! | relay memory | a client that does not read | `DATA_BYTES`, `DISCO_BYTES`, `CONTROL_BYTES` a client, `queued_bytes` of all | `WRITE` | tests/relay/abuse.rs::readers_that_do_not_read_lose_their_packets_and_then_their_connection |
//! | relay's remembered answers | nodes | `ANSWERS` | `REMEMBERED` | src/relay/verify.rs::what_is_remembered_is_bounded_and_the_oldest_goes_first |

use std::time::Duration;

/// Bytes of one HTTP/1 request head. The longest honest one carries a 136-character handshake.
pub(crate) const HEAD_BYTES: usize = 8 * 1024;
/// Headers in one HTTP/1 request.
pub(crate) const HEADERS: usize = 64;
/// How long a request head may take, idle time between two requests included: bounds half-open connections.
pub(crate) const HEAD_TIME: Duration = Duration::from_secs(15);
/// How long to wait after an accept that failed, as for want of file descriptors.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a TLS handshake may take.
pub(crate) const TLS_TIME: Duration = Duration::from_secs(10);
/// How long both ends may take over the WebSocket and Noise handshakes.
pub(crate) const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Body of a request outside Noise: `/verify` carries two keys and an address.
pub(crate) const PLAIN_BODY_BYTES: usize = 4 * 1024;
/// Body of a register or map request. Hostinfo with every list at its limit stays below.
pub(crate) const MACHINE_BODY_BYTES: usize = 1024 * 1024;
/// Bodies up to here are read from anyone; honest ones are a few KiB.
pub(crate) const SMALL_BODY_BYTES: usize = 16 * 1024;
/// Larger bodies that are read at once, whoever sends them, so that strangers together cannot fill memory.
pub(crate) const LARGE_BODIES: usize = 64;
/// How long a body may take to arrive.
pub(crate) const BODY_TIME: Duration = Duration::from_secs(20);
/// Body of an administration request: the largest policy, all of it escaped in JSON.
pub(crate) const ADMIN_BODY_BYTES: usize = 32 * 1024 * 1024;

/// Requests at once on one Noise connection: a map stream, an update, a follow-up and some to spare.
pub(crate) const STREAMS: u32 = 8;
/// Connections of one machine: the one in use, the one before it whose end is not noticed yet, and as many to spare.
pub(crate) const MACHINE_CONNECTIONS: usize = 4;
/// Requests of one machine in a second: a client that starts needs a handful, and then one each time it moves.
pub(crate) const MACHINE_RATE: f64 = 2.0;
/// Requests of one machine at once.
pub(crate) const MACHINE_BURST: u32 = 60;
/// Requests to register of one address in a second, ten times as many at once: a site behind one address comes back.
pub(crate) const REGISTRATION_RATE: u32 = 50;
/// Questions outside of Noise of one address in a second: those of a relay about its clients are most.
pub(crate) const QUESTION_RATE: u32 = 100;
/// The longest pre-authentication key that is looked at; ours have some 60 characters.
pub(crate) const AUTH_KEY_BYTES: usize = 256;
/// Lines in the log in a second about machines of one address that register: half a kilobyte each.
pub(crate) const LINE_RATE: f64 = 0.2;
/// Such lines at once: a rack of machines that join together is told in full.
pub(crate) const LINE_BURST: u32 = 500;
/// Lines in a second about what a node does that its operator should know.
pub(crate) const NOTICE_RATE: f64 = 0.01;
/// Such lines at once.
pub(crate) const NOTICE_BURST: u32 = 3;
/// Bytes of a map that are handed over at once: what waits for a node that reads slowly is no more.
pub(crate) const PIECE_BYTES: usize = 16 * 1024;
/// A node that takes nothing of its map for this long is cut off at the next look, once in [`IDLE_TIME`].
pub(crate) const STALL_TIME: Duration = Duration::from_secs(45);
/// Maps at which those that ended are first looked for.
pub(crate) const MAPS_LOOKED_AT: usize = 1_024;
/// HTTP/2 receive window per request and per connection; small, because requests are small and nodes many.
pub(crate) const RECEIVE_WINDOW: u32 = 64 * 1024;
/// HTTP/2 send buffer per request: a map is handed over piece by piece as the node reads it.
pub(crate) const SEND_BUFFER: usize = 16 * 1024;
/// HTTP/2 request headers of one request.
pub(crate) const H2_HEADER_BYTES: u32 = 8 * 1024;
/// A Noise connection without a request for this long is closed.
pub(crate) const IDLE_TIME: Duration = Duration::from_secs(60);

/// How long a connection may take to end once it was told to.
pub(crate) const FAREWELL_TIME: Duration = Duration::from_secs(2);

/// A silent map stream says that it is alive after this long, plus up to [`KEEP_ALIVE_JITTER`] so that nodes that
/// came together do not stay in step. Clients give up after 120 s, proxies in front of us after 60 s as they come (nginx).
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(40);
/// See [`KEEP_ALIVE`].
pub(crate) const KEEP_ALIVE_JITTER: Duration = Duration::from_secs(9);

/// How long a stream stays open whose node is gone and was told so, which is how often its client asks again.
pub(crate) const GOODBYE_TIME: Duration = Duration::from_secs(60);

/// Messages that wait for one node. A node that reads slower than this is cut off and asks for a full map.
pub(crate) const STREAM_QUEUE: usize = 32;
/// Commands that wait for the registry. Past it nodes are told to come again later.
pub(crate) const HUB_QUEUE: usize = 4096;
/// Answers of nodes that they are there, which may wait for the registry: those of all nodes that there can be.
pub(crate) const PONG_QUEUE: usize = 32 * 1024;
/// How long a command may wait for its place in the queue before its sender is told to come again.
pub(crate) const HUB_PATIENCE: Duration = Duration::from_secs(5);
/// What a node that was told to come again later should wait.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(10);
/// How often the registry is asked at most what it makes of its policy, whoever looks at `/health`.
pub(crate) const ADVICE_EVERY: Duration = Duration::from_secs(10);
/// How long one follow-up request waits for approval before the node asks again.
pub(crate) const FOLLOWUP_TIME: Duration = Duration::from_secs(10 * 60);

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

    /// The rows of the table, by column.
    fn rows() -> Vec<Vec<String>> {
        let lines = include_str!("limits.rs").lines().filter_map(|line| line.strip_prefix("//! | "));
        let cells = |line: &str| line.trim_end_matches(" |").split(" | ").map(str::to_owned).collect();
        lines.map(cells).skip(2).collect()
    }

    fn sources(dir: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
    }

    #[test]
    fn each_row_of_the_table_has_its_bound_and_its_test() {
        let files = sources(&Path::new(ROOT).join("src"));
        let texts: String = files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect();
        let rows = rows();
        assert!(rows.len() > 20);
        for row in rows {
            assert_eq!(row.len(), 5, "{row:?}");
            for name in row[2..4].iter().flat_map(|cell| cell.split('`').skip(1).step_by(2)) {
                let is_there = [format!("const {name}:"), format!("pub {name}:"), format!("pub(crate) {name}:")]
                    .iter()
                    .any(|text| texts.contains(text));
                assert!(is_there, "{name} of {row:?}");
            }
            let (file, test) = row[4].split_once("::").unwrap();
            let text = fs::read_to_string(Path::new(ROOT).join(file)).unwrap();
            assert!(text.contains(&format!("fn {test}(")), "{test} in {file}");
        }
    }
}
