//! For fuzzers: one client's session from what it sends.

use std::sync::Arc;
use std::time::Duration;

use curve_client::BlockDevice;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;

use super::connection::serve;
use super::negotiation::Export;

/// A session that lasts longer hangs.
const SESSION_MAX: Duration = Duration::from_secs(10);

/// Serves a client that sends these bytes and then nothing more, until it is let go.
pub fn session(device: Arc<dyn BlockDevice>, read_only: bool, sent: &[u8]) {
    let export = Export {
        name: "volume".into(),
        description: "fuzzed".into(),
        size: device.size(),
        read_only,
    };
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (client, server) = UnixStream::pair().expect("a pair of sockets");
        let (mut answers, mut requests) = client.into_split();
        let sending = async {
            // The server may hang up before it has read all.
            let _ = requests.write_all(sent).await;
            drop(requests);
        };
        let mut answered = Vec::new();
        let session = async {
            let served = serve(server, device, export, CancellationToken::new());
            tokio::join!(served, sending, answers.read_to_end(&mut answered))
        };
        // How it ended is the client's business: it may have broken the protocol.
        let (_, (), _) =
            tokio::time::timeout(SESSION_MAX, session).await.expect("the session ends");
    });
}
