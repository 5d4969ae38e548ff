//! One connection out of several addresses, both families side by side (RFC 8305).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

/// The head start that an address has over the next (RFC 8305 §5).
const HEAD_START: Duration = Duration::from_millis(250);

/// Tries the addresses in turn, each a head start after the one before or as soon as one fails, and takes the first that
/// is connected. The error tells of each.
pub(super) async fn race<T, F: Future<Output = Result<T, String>>>(
    addresses: impl Iterator<Item = SocketAddr>,
    connect: impl Fn(SocketAddr) -> F,
) -> Result<T, String> {
    let mut waiting = by_turns(addresses);
    let mut under_way = FuturesUnordered::new();
    let mut errors = Vec::new();
    loop {
        under_way.extend(waiting.pop_front().map(&connect));
        if under_way.is_empty() {
            return Err(errors.join("; "));
        }
        tokio::select! {
            Some(outcome) = under_way.next() => match outcome {
                Ok(connected) => return Ok(connected),
                Err(error) => errors.push(error),
            },
            () = tokio::time::sleep(HEAD_START), if !waiting.is_empty() => {}
        }
    }
}

/// One address of each family after the other, beginning with the family of the first.
fn by_turns(addresses: impl Iterator<Item = SocketAddr>) -> VecDeque<SocketAddr> {
    let addresses: Vec<SocketAddr> = addresses.collect();
    let first = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (mut ours, mut others) =
        (addresses.iter().filter(|a| a.is_ipv4() == first), addresses.iter().filter(|a| a.is_ipv4() != first));
    let mut turns = VecDeque::with_capacity(addresses.len());
    loop {
        let (one, other) = (ours.next(), others.next());
        if one.is_none() && other.is_none() {
            return turns;
        }
        turns.extend(one.into_iter().chain(other));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_families_take_turns() {
        let mixed = addresses(&["[2001:db8::1]:1", "[2001:db8::2]:1", "[2001:db8::3]:1", "192.0.2.1:1"]);
        let turns = addresses(&["[2001:db8::1]:1", "192.0.2.1:1", "[2001:db8::2]:1", "[2001:db8::3]:1"]);
        assert_eq!(by_turns(mixed.into_iter()), turns);
        assert!(by_turns([].into_iter()).is_empty());
    }

    #[tokio::test]
    async fn a_family_that_swallows_everything_costs_a_head_start() {
        let places = addresses(&["[2001:db8::1]:1", "[2001:db8::2]:1", "192.0.2.1:1"]);
        let begun = tokio::time::Instant::now();
        let connect = |address: SocketAddr| async move {
            if address.is_ipv6() { std::future::pending().await } else { Ok(address) }
        };
        assert_eq!(race(places.into_iter(), connect).await, Ok(addresses(&["192.0.2.1:1"])[0]));
        assert!(begun.elapsed() < 2 * HEAD_START);
    }

    #[tokio::test]
    async fn one_that_fails_gives_way_at_once_and_all_are_told() {
        let places = addresses(&["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"]);
        let begun = tokio::time::Instant::now();
        let refused = |address: SocketAddr| async move { Err::<(), _>(format!("{address} refused")) };
        let error = race(places.into_iter(), refused).await.unwrap_err();
        assert_eq!(error, "192.0.2.1:1 refused; 192.0.2.2:1 refused; 192.0.2.3:1 refused");
        assert!(begun.elapsed() < HEAD_START);
    }
}
