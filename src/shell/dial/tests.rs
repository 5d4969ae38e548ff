use std::sync::Mutex;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::TcpListener;

use super::names::Found;
use super::*;

/// A name server of the test's own.
struct Told(Vec<IpAddr>);

impl LookUp for Told {
    fn look_up(&self, _name: String) -> Found {
        let found = self.0.clone();
        Box::pin(async move { Ok(found) })
    }
}

/// One that answers once its time has come.
struct Late(Duration, Vec<IpAddr>);

impl LookUp for Late {
    fn look_up(&self, _name: String) -> Found {
        let (begun, after, found) = (tokio::time::Instant::now(), self.0, self.1.clone());
        Box::pin(async move {
            while begun.elapsed() < after {
                tokio::task::yield_now().await;
            }
            Ok(found)
        })
    }
}

/// Greets whoever connects.
async fn greeter() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"hello").await.unwrap();
        }
    });
    port
}

async fn greeting(mut stream: TcpStream) -> String {
    let mut greeting = [0; 5];
    stream.read_exact(&mut greeting).await.unwrap();
    String::from_utf8_lossy(&greeting).into_owned()
}

/// An HTTP proxy that knows one name; what it was asked, head by head.
async fn proxy() -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let record = asked.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                stream.read_line(&mut head).await.unwrap();
            }
            record.lock().unwrap().push(head.clone());
            let to = head.strip_prefix("CONNECT greeter.example:").and_then(|rest| rest.split_once(' '));
            let Some((port, _)) = to else {
                stream.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n").await.unwrap();
                continue;
            };
            let mut there = TcpStream::connect(format!("127.0.0.1:{port}")).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut stream, &mut there).await });
        }
    });
    (port, asked)
}

fn direct() -> Dialler {
    Dialler::new(None).with_proxies(Matcher::builder().build())
}

#[tokio::test]
async fn a_name_that_takes_longer_than_a_connection_may_is_waited_for() {
    let port = greeter().await;
    let slow = Late(Duration::from_millis(301), vec![[127, 0, 0, 1].into()]);
    let dialler = direct().with_names(slow).within(Duration::from_millis(300));

    assert_eq!(greeting(dialler.dial(&DialTarget::new("greeter.example", port)).await.unwrap()).await, "hello");
}

#[tokio::test]
async fn a_name_that_leads_into_the_void_in_one_family_is_reached_by_the_other() {
    let port = greeter().await;
    // 100::/64 is the discard prefix (RFC 6666): nothing answers from there, whether or not there is IPv6 here.
    let mixed = Told(vec!["100::1".parse().unwrap(), [127, 0, 0, 1].into()]);
    let dialler = direct().with_names(mixed);

    assert_eq!(greeting(dialler.dial(&DialTarget::new("greeter.example", port)).await.unwrap()).await, "hello");
}

#[tokio::test]
async fn known_addresses_need_no_name_and_a_family_that_is_not_wanted_is_not_used() {
    let port = greeter().await;
    let wrong = Told(vec!["::1".parse().unwrap()]);
    let dialler = direct().with_names(wrong);
    let place = DialTarget::new("greeter.example", port);

    let known = place.clone().at(vec![[127, 0, 0, 1].into()], [false, true]);
    assert_eq!(greeting(dialler.dial(&known).await.unwrap()).await, "hello");
    let only_v4 = place.clone().at(Vec::new(), [true, false]);
    assert_eq!(dialler.dial(&only_v4).await.unwrap_err(), "greeter.example has no address that may be used");
    let nowhere = place.at(Vec::new(), [false, false]);
    assert_eq!(dialler.dial(&nowhere).await.unwrap_err(), "greeter.example has no address");
}

#[tokio::test]
async fn the_proxy_that_the_environment_names_is_asked_for_a_tunnel_and_looks_the_name_up() {
    let port = greeter().await;
    let (proxy, asked) = proxy().await;
    let proxies = Matcher::builder().all(format!("http://me:secret@127.0.0.1:{proxy}")).no("direct.example").build();
    let dialler = Dialler::new(None).with_proxies(proxies).with_names(Told(Vec::new()));

    for place in [DialTarget::new("greeter.example", port), DialTarget::new("greeter.example", port).plain()] {
        assert!(dialler.is_proxied(&place));
        assert_eq!(greeting(dialler.dial(&place).await.unwrap()).await, "hello");
    }
    let head = asked.lock().unwrap()[0].to_ascii_lowercase();
    assert!(head.contains("proxy-authorization: basic bwu6c2vjcmv0"), "{head}");

    let error = dialler.dial(&DialTarget::new("other.example", port)).await.unwrap_err();
    assert!(error.starts_with(&format!("proxy 127.0.0.1:{proxy}: ")), "{error}");
    for straight in ["direct.example", "127.0.0.1", "::1", "localhost"] {
        assert!(!dialler.is_proxied(&DialTarget::new(straight, port)), "{straight}");
    }
}

#[tokio::test]
async fn a_proxy_that_speaks_socks_is_asked_by_name() {
    let port = greeter().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut hello = [0; 3];
        stream.read_exact(&mut hello).await.unwrap();
        stream.write_all(&[5, 0]).await.unwrap();
        // Version, connect, reserved, a name of 15 bytes, the port.
        let mut request = [0; 5 + 15 + 2];
        stream.read_exact(&mut request).await.unwrap();
        assert_eq!(&request[..5], &[5, 1, 0, 3, 15]);
        assert_eq!(&request[5..20], b"greeter.example");
        let mut there = TcpStream::connect(format!("127.0.0.1:{port}")).await.unwrap();
        stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
        let _ = copy_bidirectional(&mut stream, &mut there).await;
    });
    let proxies = Matcher::builder().all(format!("socks5h://127.0.0.1:{proxy}")).build();
    let dialler = Dialler::new(None).with_proxies(proxies);

    assert_eq!(greeting(dialler.dial(&DialTarget::new("greeter.example", port)).await.unwrap()).await, "hello");
}

#[tokio::test]
async fn a_place_is_written_as_an_authority() {
    for (host, authority) in
        [("a.example", "a.example:1"), ("192.0.2.1", "192.0.2.1:1"), ("[::1]", "[::1]:1"), ("::1", "[::1]:1")]
    {
        assert_eq!(DialTarget::new(host, 1).authority(), authority);
    }
}
