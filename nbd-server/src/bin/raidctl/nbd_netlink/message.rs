//! Netlink messages as bytes: the generic-netlink requests of this program, and what the kernel answers.
//!
//! Pure: bytes in, bytes out. A message is a header of 16 bytes, a generic header of 4 and attributes, each with a
//! length and a kind and padded to 4 bytes; an attribute may hold attributes. Everything is in the machine's own byte
//! order. What is cut short or contradicts itself is [`Malformed`]; nothing is read beyond the bytes there are.

/// What a netlink header and a generic header take.
const HEADER_BYTES: usize = 16;
const GENERIC_BYTES: usize = 4;
const ATTRIBUTE_BYTES: usize = 4;

/// Kinds of messages below those of the families.
const TYPE_NOOP: u16 = 1;
const TYPE_ERROR: u16 = 2;
const TYPE_DONE: u16 = 3;
const TYPE_OVERRUN: u16 = 4;
/// The first type that is a family.
const FIRST_FAMILY: u16 = 0x10;

/// "This is a request" and "answer it in any case".
const REQUEST_WITH_ACK: u16 = 0x01 | 0x04;

/// The upper two bits of an attribute's kind say how it is encoded; the rest is the kind.
const KIND_MASK: u16 = 0x3fff;
const NESTED: u16 = 0x8000;

/// The bytes are no netlink message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's message is malformed")]
pub struct Malformed;

/// Attributes to be sent, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// Adds a number of 32 bits.
    pub fn u32(self, kind: u16, value: u32) -> Attributes {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Adds a number of 64 bits.
    pub fn u64(self, kind: u16, value: u64) -> Attributes {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Adds a text; it ends with a zero on the wire.
    pub fn text(self, kind: u16, value: &str) -> Attributes {
        self.put(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Adds an attribute that holds attributes.
    pub fn nested(self, kind: u16, value: Attributes) -> Attributes {
        self.put(kind | NESTED, &value.0)
    }

    /// What is sent is made here, of a handful of sockets and numbers: it never comes near the 64 KiB of a length.
    fn put(mut self, kind: u16, value: &[u8]) -> Attributes {
        let len = u16::try_from(ATTRIBUTE_BYTES + value.len()).unwrap_or(u16::MAX);
        let value = &value[..usize::from(len) - ATTRIBUTE_BYTES];
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(aligned(self.0.len()), 0);
        self
    }
}

/// A request to a family that is always answered: with a message, an error or an acknowledgement.
pub fn request(family: u16, command: u8, sequence: u32, attributes: &Attributes) -> Vec<u8> {
    let len = HEADER_BYTES + GENERIC_BYTES + attributes.0.len();
    let mut bytes = Vec::with_capacity(len);
    bytes.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend_from_slice(&family.to_ne_bytes());
    bytes.extend_from_slice(&REQUEST_WITH_ACK.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&0u32.to_ne_bytes());
    bytes.extend_from_slice(&[command, 1, 0, 0]);
    bytes.extend_from_slice(&attributes.0);
    bytes
}

/// One message of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// The request with this number is answered: 0 is success, anything else an `errno`.
    Answer {
        /// The request's number.
        sequence: u32,
        /// A positive errno, or 0.
        errno: i32,
    },
    /// A message of a family.
    Message {
        /// The request's number; 0 in what nobody asked for.
        sequence: u32,
        /// Whose message it is.
        family: u16,
        /// The family's command.
        command: u8,
        /// Its attributes.
        attributes: Received<'a>,
    },
    /// Messages before this one were lost.
    Overrun,
}

/// Cuts what one receive brought into messages.
pub fn parse(mut bytes: &[u8]) -> Result<Vec<Incoming<'_>>, Malformed> {
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let len = usize::try_from(u32_at(bytes, 0)?).map_err(|_| Malformed)?;
        let body = bytes.get(HEADER_BYTES..len).ok_or(Malformed)?;
        let (kind, sequence) = (u16_at(bytes, 4)?, u32_at(bytes, 8)?);
        match kind {
            TYPE_NOOP => {}
            TYPE_OVERRUN => messages.push(Incoming::Overrun),
            TYPE_DONE => messages.push(Incoming::Answer { sequence, errno: 0 }),
            TYPE_ERROR => {
                let errno = i32::from_ne_bytes(array_at(body, 0)?).checked_neg().ok_or(Malformed)?;
                messages.push(Incoming::Answer { sequence, errno });
            }
            family if family >= FIRST_FAMILY => {
                let command = *body.first().ok_or(Malformed)?;
                let attributes = Received::parse(body.get(GENERIC_BYTES..).ok_or(Malformed)?)?;
                messages.push(Incoming::Message { sequence, family, command, attributes });
            }
            _ => return Err(Malformed),
        }
        // The last message may go without its padding.
        bytes = bytes.get(aligned(len)..).unwrap_or_default();
    }
    Ok(messages)
}

/// Attributes that were received, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Received<'a> {
    fn parse(mut bytes: &'a [u8]) -> Result<Received<'a>, Malformed> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let len = usize::from(u16_at(bytes, 0)?);
            let kind = u16_at(bytes, 2)? & KIND_MASK;
            found.push((kind, bytes.get(ATTRIBUTE_BYTES..len).ok_or(Malformed)?));
            bytes = bytes.get(aligned(len)..).unwrap_or_default();
        }
        Ok(Received(found))
    }

    fn value(&self, kind: u16) -> Result<&'a [u8], Malformed> {
        self.0.iter().find(|(found, _)| *found == kind).map(|(_, value)| *value).ok_or(Malformed)
    }

    /// The number of 8 bits of this kind.
    pub fn u8(&self, kind: u16) -> Result<u8, Malformed> {
        Ok(u8::from_ne_bytes(array_at(self.value(kind)?, 0)?))
    }

    /// The number of 16 bits of this kind.
    pub fn u16(&self, kind: u16) -> Result<u16, Malformed> {
        u16_at(self.value(kind)?, 0)
    }

    /// The number of 32 bits of this kind.
    pub fn u32(&self, kind: u16) -> Result<u32, Malformed> {
        u32_at(self.value(kind)?, 0)
    }

    /// The text of this kind, without the zero at its end.
    pub fn text(&self, kind: u16) -> Result<&'a str, Malformed> {
        let value = self.value(kind)?;
        std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).map_err(|_| Malformed)
    }

    /// What the attribute of this kind holds.
    pub fn nested(&self, kind: u16) -> Result<Received<'a>, Malformed> {
        Received::parse(self.value(kind)?)
    }

    /// What each of the attributes holds, whatever its kind: the shape of lists.
    pub fn items(&self) -> impl Iterator<Item = Result<Received<'a>, Malformed>> {
        self.0.iter().map(|(_, value)| Received::parse(value))
    }
}

fn aligned(len: usize) -> usize {
    len.next_multiple_of(4)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Malformed> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(Malformed)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Malformed> {
    Ok(u16::from_ne_bytes(array_at(bytes, at)?))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Malformed> {
    Ok(u32::from_ne_bytes(array_at(bytes, at)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let item = Attributes::default().nested(1, Attributes::default().u32(1, 9));
        let all = Attributes::default().u32(1, 7).u64(2, 1 << 40).text(10, "abc").nested(7, item);
        request(0x1c, 3, 42, &all)
    }

    #[test]
    fn a_request_reads_back_as_it_was_written() {
        let bytes = sample();
        assert_eq!(bytes.len() % 4, 0);
        let messages = parse(&bytes).unwrap();
        let [Incoming::Message { sequence: 42, family: 0x1c, command: 3, attributes }] = &messages[..] else {
            panic!("{messages:?}")
        };
        assert_eq!(attributes.u32(1), Ok(7));
        assert_eq!(attributes.text(10), Ok("abc"));
        let lists: Vec<_> = attributes.nested(7).unwrap().items().collect();
        assert_eq!(lists.len(), 1);
        assert_eq!(lists[0].as_ref().unwrap().u32(1), Ok(9));
        assert_eq!(attributes.u32(3), Err(Malformed), "what is not there is an error");
    }

    #[test]
    fn the_header_is_as_the_kernel_wants_it() {
        let bytes = request(0x1c, 5, 1, &Attributes::default().u32(1, 0x0403_0201));
        let mut wanted = Vec::new();
        wanted.extend_from_slice(&28u32.to_ne_bytes());
        wanted.extend_from_slice(&0x1cu16.to_ne_bytes());
        wanted.extend_from_slice(&5u16.to_ne_bytes());
        wanted.extend_from_slice(&1u32.to_ne_bytes());
        wanted.extend_from_slice(&[0; 4]);
        wanted.extend_from_slice(&[5, 1, 0, 0]);
        wanted.extend_from_slice(&8u16.to_ne_bytes());
        wanted.extend_from_slice(&1u16.to_ne_bytes());
        wanted.extend_from_slice(&0x0403_0201u32.to_ne_bytes());
        assert_eq!(bytes, wanted);
    }

    /// A message of `len` bytes as its header says, of a kind, with this body.
    fn raw(len: u32, kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&[0; 10]);
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn errors_and_acknowledgements_are_answers() {
        let refused = raw(20, TYPE_ERROR, &(-16i32).to_ne_bytes());
        assert_eq!(parse(&refused), Ok(vec![Incoming::Answer { sequence: 0, errno: 16 }]));
        let done = raw(20, TYPE_ERROR, &0i32.to_ne_bytes());
        assert_eq!(parse(&done), Ok(vec![Incoming::Answer { sequence: 0, errno: 0 }]));
        let both = [raw(16, TYPE_NOOP, &[]), raw(16, TYPE_OVERRUN, &[]), done].concat();
        assert_eq!(parse(&both).unwrap().len(), 2);
    }

    #[test]
    fn lengths_that_lead_nowhere_are_refused() {
        for bytes in [
            raw(0, TYPE_NOOP, &[]),
            raw(15, TYPE_NOOP, &[]),
            raw(17, TYPE_NOOP, &[]),
            raw(u32::MAX, TYPE_NOOP, &[]),
            raw(18, TYPE_ERROR, &[0, 0]),
            raw(20, TYPE_ERROR, &i32::MIN.to_ne_bytes()),
            raw(18, 0x1c, &[1, 1]),
            raw(24, 0x1c, &[1, 1, 0, 0, 3, 0, 1, 0]),
            raw(24, 0x1c, &[1, 1, 0, 0, 9, 0, 1, 0]),
            raw(16, 9, &[]),
        ] {
            assert_eq!(parse(&bytes), Err(Malformed), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn rubbish_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            visit(&bytes);
        }

        /// Nearly right is where parsers fail.
        #[test]
        fn a_message_with_a_few_wrong_bytes_never_panics(
            wrong in proptest::collection::vec((0usize..80, any::<u8>()), 0..6), cut in 0usize..80,
        ) {
            let mut bytes = sample();
            for (at, value) in wrong {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            bytes.truncate(bytes.len().saturating_sub(cut));
            visit(&bytes);
        }
    }

    /// Looks at all there is in a message.
    fn visit(bytes: &[u8]) {
        for message in parse(bytes).unwrap_or_default() {
            let Incoming::Message { attributes, .. } = message else { continue };
            for kind in 0..12 {
                let numbers = (attributes.u8(kind), attributes.u16(kind), attributes.u32(kind));
                let items = attributes.nested(kind).map(|inner| inner.items().count());
                std::hint::black_box((numbers, attributes.text(kind), items)).1.ok();
            }
        }
    }
}
