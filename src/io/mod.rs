//! Byte streams that more than one program's shell needs: the codecs of `wire`, laid over a socket.
//!
//! Its own module because the agent and the coordinator, the two ends of the control protocol, may not name each
//! other. Nothing here decides anything.

mod noise_stream;

pub use noise_stream::NoiseStream;
