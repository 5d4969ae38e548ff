//! Whom port mapping asks: the router of the main table's default route.

use warren_linux::{DefaultRoute, Gateway};

use crate::common::*;

/// The gateway once it is as expected: word of each change comes by itself.
async fn expect(route: &mut DefaultRoute, expected: Option<(&str, &str)>) {
    let expected =
        expected.map(|(address, local)| Gateway { address: address.parse().unwrap(), local: local.parse().unwrap() });
    let arrives = async {
        while route.gateway().await.unwrap() != expected {
            route.changed().await;
        }
    };
    tokio::time::timeout(PATIENCE, arrives).await.unwrap_or_else(|_| panic!("never {expected:?}"));
}

#[test]
fn the_preferred_default_route_of_the_main_table_names_the_gateway_and_our_address() {
    in_namespace(Needs::Namespace, || async {
        let mut route = DefaultRoute::new().unwrap();
        expect(&mut route, None).await;

        sh("ip link add up0 type veth peer name up1 && ip link set up0 up && ip link set up1 up");
        sh("ip addr add 192.168.7.5/24 dev up0 && ip addr add 10.9.0.5/24 dev up1 && ip addr add 10.9.0.6/24 dev up1");
        sh("ip route add default via 192.168.7.1 metric 200");
        expect(&mut route, Some(("192.168.7.1", "192.168.7.5"))).await;

        sh("ip route add default via 10.9.0.1 metric 100 src 10.9.0.6");
        expect(&mut route, Some(("10.9.0.1", "10.9.0.6"))).await;

        sh("ip route add unreachable default metric 50");
        expect(&mut route, None).await;

        sh("ip route add default via 192.168.7.9 table 100 && ip route del unreachable default metric 50");
        sh("ip route del default via 10.9.0.1");
        expect(&mut route, Some(("192.168.7.1", "192.168.7.5"))).await;

        sh("ip link set up0 down");
        expect(&mut route, None).await;
    });
}

#[test]
fn a_default_route_without_a_router_and_one_with_several() {
    in_namespace(Needs::Namespace, || async {
        let mut route = DefaultRoute::new().unwrap();
        sh("ip link add up0 type veth peer name up1 && ip link set up0 up && ip link set up1 up");
        sh("ip addr add 192.168.7.5/24 dev up0");
        sh("ip route add default dev up0");
        expect(&mut route, None).await;
        sh("ip route replace default nexthop via 192.168.7.1 nexthop via 192.168.7.2");
        expect(&mut route, Some(("192.168.7.1", "192.168.7.5"))).await;
    });
}
