//! Netlink attributes as netfilter has them: numbers in network byte order, names with a closing zero, each attribute
//! and each nest padded to four bytes.

use netlink_packet_core::NLA_TYPE_MASK;

/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// Length and kind before the value.
const HEADER: usize = 4;

/// The end of a message, where attributes are added.
pub(crate) struct Attributes<'a> {
    bytes: &'a mut Vec<u8>,
}

impl<'a> Attributes<'a> {
    pub(crate) fn after(bytes: &'a mut Vec<u8>) -> Self {
        Self { bytes }
    }

    /// Attributes that are written already.
    pub(crate) fn raw(&mut self, attributes: &[u8]) {
        self.bytes.extend(attributes);
    }

    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |inner| inner.bytes.extend(value));
    }

    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(crate) fn u64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        self.nested(kind, |inner| {
            inner.bytes.extend(value.as_bytes());
            inner.bytes.push(0);
        });
    }

    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
        self.nested(kind | NESTED, fill);
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
        let begin = self.bytes.len();
        self.bytes.extend([0; HEADER]);
        fill(&mut Attributes { bytes: self.bytes });
        // Elements are the only long thing, and they come in lists that fit.
        let length = u16::try_from(self.bytes.len() - begin).unwrap_or_default();
        self.bytes[begin..begin + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes[begin + 2..begin + HEADER].copy_from_slice(&kind.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The attributes that these bytes hold, by their numbers; what is cut short ends them.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let [a, b, c, d] = *rest.first_chunk::<HEADER>()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & NLA_TYPE_MASK, value))
    })
}

/// The value of the first attribute of this number.
pub(crate) fn attribute(bytes: &[u8], number: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == number).map(|(_, value)| value)
}

/// A number of four bytes.
pub(crate) fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// A name.
pub(crate) fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.strip_suffix(&[0])?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nests_hold_them() {
        let mut bytes = Vec::new();
        let mut written = Attributes::after(&mut bytes);
        written.text(1, "lo");
        written.nest(2, |inner| inner.u32(3, 0x0102_0304));
        let (three, eight, twelve) = (7u16.to_ne_bytes(), 8u16.to_ne_bytes(), 12u16.to_ne_bytes());
        let mut expected = [three, 1u16.to_ne_bytes()].concat();
        expected.extend(b"lo\0\0");
        expected.extend([twelve, (2 | NESTED).to_ne_bytes(), eight, 3u16.to_ne_bytes()].concat());
        expected.extend([1, 2, 3, 4]);
        assert_eq!(bytes, expected);

        assert_eq!(attribute(&bytes, 1).and_then(text), Some("lo"));
        assert_eq!(attribute(attribute(&bytes, 2).unwrap(), 3).and_then(number), Some(0x0102_0304));
        assert_eq!(attribute(&bytes, 3), None);
        assert_eq!(attributes(&bytes[..bytes.len() - 1]).count(), 1, "the second is cut short");
        assert_eq!(attributes(&[3, 0, 1, 0, 0]).count(), 0, "shorter than its own head");
    }
}
