//! The pipe to the helper that tells this host's resolver of us.
//!
//! Nobody is asked before there is something to be told, so a host that is not to be touched hears nothing at all.

use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

use warren_core::dns::host::{HostNames, HostReport, MESSAGE_LEN};

/// How long to wait before it is asked anew.
const PAUSE: Duration = Duration::from_secs(1);

/// How the host is told; or why nobody tells it.
pub(super) type HostNews = Result<HostReport, String>;

/// What the helper is told, and what it says.
pub struct HostPipe {
    pub(super) names: watch::Sender<HostNames>,
    pub(super) news: mpsc::Receiver<HostNews>,
}

impl HostPipe {
    /// Begins. The helper's socket need not be there.
    pub(super) fn spawn(socket: PathBuf) -> Self {
        let (names, wanted) = watch::channel(HostNames::default());
        let (out, news) = mpsc::channel(8);
        tokio::spawn(async move {
            let mut wanted = wanted;
            let mut told = None;
            // Ends with the loop, which holds the other ends.
            while wait(&mut wanted).await && !out.is_closed() {
                let heard = match talk(&socket, &mut wanted, &out, &mut told).await {
                    Ok(()) => Ok(HostReport::default()),
                    Err(error) => Err(missing(&socket, &error)),
                };
                if told.as_ref() != Some(&heard) {
                    told = Some(heard.clone());
                    let _ = out.send(heard).await;
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self { names, news }
    }
}

/// Waits until there is something to be told; `false` where nobody will say so any more.
async fn wait(wanted: &mut watch::Receiver<HostNames>) -> bool {
    wanted.wait_for(|names| !names.is_nothing()).await.is_ok()
}

/// Tells the helper until nothing is wanted any more, or it is gone.
async fn talk(
    socket: &std::path::Path,
    wanted: &mut watch::Receiver<HostNames>,
    out: &mpsc::Sender<HostNews>,
    told: &mut Option<HostNews>,
) -> std::io::Result<()> {
    let stream = UnixStream::connect(socket).await?;
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader).take(MESSAGE_LEN as u64);
    let (mut line, mut last) = (Vec::new(), false);
    wanted.mark_changed();
    loop {
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let names = wanted.borrow_and_update().clone();
                last = names.is_nothing();
                let mut message = serde_json::to_vec(&names)?;
                message.push(b'\n');
                writer.write_all(&message).await?;
            }
            // What was read of a line before the other way was taken is kept.
            read = reader.read_until(b'\n', &mut line) => {
                if read? == 0 || line.last() != Some(&b'\n') {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                let report: HostReport = serde_json::from_slice(&line)?;
                line.clear();
                reader.set_limit(MESSAGE_LEN as u64);
                *told = Some(Ok(report.clone()));
                if out.send(Ok(report)).await.is_err() || last {
                    return Ok(());
                }
            }
        }
    }
}

fn missing(socket: &std::path::Path, error: &std::io::Error) -> String {
    format!(
        "this host's resolver is not told of the network's names: {}: {error}; `systemctl start warren-dns.socket` \
         starts what tells it, `warren set --accept-dns=false` does without",
        socket.display()
    )
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    const TIME: Duration = Duration::from_secs(10);

    fn names(search: &str) -> HostNames {
        HostNames { search: vec![search.parse().unwrap()], port: 5353, ..HostNames::default() }
    }

    async fn hear(news: &mut mpsc::Receiver<HostNews>) -> HostNews {
        tokio::time::timeout(TIME, news.recv()).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn the_helper_is_asked_only_where_something_is_to_be_told_and_asked_anew_where_it_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let mut pipe = HostPipe::spawn(socket.clone());
        pipe.names.send_replace(names("one"));
        let error = hear(&mut pipe.news).await.unwrap_err();
        assert!(error.contains("warren-dns.socket") && error.contains("accept-dns=false"), "{error}");

        let listener = UnixListener::bind(&socket).unwrap();
        for round in ["two", "three"] {
            let (stream, _) = tokio::time::timeout(TIME, listener.accept()).await.unwrap().unwrap();
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            assert!(!serde_json::from_str::<HostNames>(&line).unwrap().is_nothing());
            pipe.names.send_replace(names(round));
            line.clear();
            stream.read_line(&mut line).await.unwrap();
            assert_eq!(serde_json::from_str::<HostNames>(&line).unwrap(), names(round));
            let report = HostReport { told_by: round.to_owned(), ..HostReport::default() };
            let mut answer = serde_json::to_vec(&report).unwrap();
            answer.push(b'\n');
            stream.write_all(&answer).await.unwrap();
            assert_eq!(hear(&mut pipe.news).await, Ok(report));
            drop(stream);
            assert!(hear(&mut pipe.news).await.is_err());
        }
    }
}
