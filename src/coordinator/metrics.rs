//! What the coordinator counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

/// The figures.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Map streams open at this moment.
    pub(crate) streams: Gauge,
    /// Map streams ended because their node read too slowly.
    pub(crate) dropped: Counter,
    /// Connections ended because their node took nothing of its map.
    pub(crate) stalled: Counter,
    /// Lines that were not logged, because the same address caused many.
    pub(crate) unlogged: Counter,
    /// Noise handshakes that succeeded.
    pub(crate) handshakes: Counter,
    /// Requests told to come again later.
    pub(crate) refused: Counter,
}
