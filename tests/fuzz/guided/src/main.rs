//! One program for all decoders: `WARREN_FUZZ` names the one that is fed. Before libFuzzer reads its folder of inputs
//! (`WARREN_FUZZ_INPUTS`), the committed messages are put there.

#![no_main]

#[path = "../../decoders.rs"]
mod decoders;

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

static DECODE: OnceLock<decoders::Decode> = OnceLock::new();

fn choose() -> decoders::Decode {
    let wanted = std::env::var("WARREN_FUZZ").expect("WARREN_FUZZ names a decoder");
    let known = decoders::DECODERS.iter().find(|(name, _)| *name == wanted);
    let (name, decode) = known.unwrap_or_else(|| panic!("no decoder is called {wanted}"));
    if let Some(folder) = std::env::var_os("WARREN_FUZZ_INPUTS") {
        for (file, bytes) in decoders::corpus(name) {
            std::fs::write(Path::new(&folder).join(file), bytes).expect("write the committed messages");
        }
    }
    *decode
}

fuzz_target!(
    init: {
        DECODE.get_or_init(choose);
    },
    |bytes: &[u8]| {
        DECODE.get_or_init(choose)(bytes);
    }
);
