use super::*;

#[test]
fn h1_the_greeting_is_the_first_output() {
    let mut negotiation = Negotiation::new(Limits::from(&Options::default()));
    assert_eq!(negotiation.step(), Step::Read);
    assert_eq!(&negotiation.take_output()[..], b"NBDMAGICIHAVEOPT\0\x03");
}
