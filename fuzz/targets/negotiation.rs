//! The handshake without I/O: whatever arrives, in pieces of any length.
//!
//! The first byte says how long the pieces are, and, above 127, that the server begins to shut down half-way. Its two lowest
//! bits say what TLS is to the connection; what follows STARTTLS is heard as if it came over TLS.
#![no_main]

use ashlar::device::{DeviceInfo, ExportEntry, ExportError};
use ashlar::nbd::Options;
use ashlar::nbd::negotiate::{Limits, Negotiation, Step, Tls};
use ashlar_fuzz::{fair, within};
use libfuzzer_sys::fuzz_target;

const DEVICE: DeviceInfo = DeviceInfo { size: 1 << 20, block_size: 512, read_only: false };

fuzz_target!(|data: &[u8]| within(fair(data.len()), || negotiate(data)));

fn negotiate(data: &[u8]) {
    let Some((&first, sent)) = data.split_first() else { return };
    let pieces = sent.chunks(1 + usize::from(first % 128));
    let half = if first < 128 { usize::MAX } else { pieces.len() / 2 };
    let mut pieces = pieces.enumerate();
    let tls = [Tls::Off, Tls::Offered, Tls::Required, Tls::Running][usize::from(first % 4)];
    let mut negotiation = Negotiation::new(Limits::from(&Options::default())).with_tls(tls);
    let (mut said, mut received) = (0, 0);
    loop {
        match negotiation.step() {
            Step::Read => match pieces.next() {
                Some((at, piece)) => {
                    if at == half {
                        negotiation.shut_down();
                    }
                    negotiation.receive(piece);
                    received += piece.len();
                }
                None => return,
            },
            Step::List => negotiation.listed(Ok(vec![entry("disk0"), entry("")])),
            Step::Open { name, .. } if name == "secret" => negotiation.needs_tls(),
            Step::Open { name, .. } if name == "gone" => negotiation.opened(Err(ExportError::Unknown(name))),
            Step::Open { name, .. } => negotiation.opened(Ok((entry(&name), DEVICE))),
            Step::Look { name, .. } if name == "gone" => negotiation.looked(Err(ExportError::Unknown(name))),
            Step::Look { .. } => negotiation.looked(Ok(Vec::new())),
            Step::Succeed(succession) => negotiation.succeeded(succession.generation % 2 == 0),
            Step::Enter => {
                assert!(
                    sent[..received].ends_with(&negotiation.into_rest()),
                    "what follows the handshake is left as it is"
                );
                return;
            }
            Step::StartTls => {
                assert!(tls == Tls::Offered || tls == Tls::Required, "TLS begins only where it is offered");
                said += negotiation.take_output().len();
                negotiation = negotiation.over_tls();
            }
            Step::Finish | Step::Close(_) => return,
        }
        said += negotiation.take_output().len();
        // An option has 16 bytes and more; an answer to it repeats a name of at most 4 KiB, twice.
        assert!(
            said <= (1 + sent.len() / 16) * 10_000,
            "what a client makes the server say is bounded by what it says"
        );
    }
}

fn entry(name: &str) -> ExportEntry {
    ExportEntry { name: name.to_owned(), description: "a disk".to_owned() }
}
