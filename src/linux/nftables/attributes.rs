//! Netlink attributes as nf_tables has them: numbers in network byte order, names with a closing zero, each attribute
//! and each nest padded to four bytes.

/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// Length and kind before the value.
const HEADER: usize = 4;

/// The end of a message, where attributes are added.
pub(super) struct Attributes<'a> {
    bytes: &'a mut Vec<u8>,
}

impl<'a> Attributes<'a> {
    pub(super) fn after(bytes: &'a mut Vec<u8>) -> Self {
        Self { bytes }
    }

    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |inner| inner.bytes.extend(value));
    }

    pub(super) fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }

    pub(super) fn u16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn u64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.nested(kind, |inner| {
            inner.bytes.extend(value.as_bytes());
            inner.bytes.push(0);
        });
    }

    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nests_hold_them() {
        let mut bytes = Vec::new();
        let mut attributes = Attributes::after(&mut bytes);
        attributes.text(1, "lo");
        attributes.nest(2, |inner| inner.u32(3, 0x0102_0304));
        let (three, eight, twelve) = (7u16.to_ne_bytes(), 8u16.to_ne_bytes(), 12u16.to_ne_bytes());
        let mut expected = [three, 1u16.to_ne_bytes()].concat();
        expected.extend(b"lo\0\0");
        expected.extend([twelve, (2 | NESTED).to_ne_bytes(), eight, 3u16.to_ne_bytes()].concat());
        expected.extend([1, 2, 3, 4]);
        assert_eq!(bytes, expected);
    }
}
