//! The readers of this module, as functions from bytes to whether they were taken.

use super::elements::{self, AddressReader};
use super::object::{AnySet, Chain, Counter, Rule};

/// The kernel lists an object of a table.
pub fn object(message: &[u8]) -> bool {
    let chain = Chain::read(message).is_ok_and(|chain| chain.base.is_some());
    let rule = Rule::read(message).is_ok_and(|rule| !rule.expressions.is_empty());
    chain || rule || AnySet::read(message).is_ok() || Counter::read(message).is_ok()
}

/// The kernel lists the elements of a set of addresses.
pub fn elements(message: &[u8]) -> bool {
    let (mut singles, mut intervals, mut found) = (AddressReader::default(), AddressReader::default(), 0);
    let is_read = elements::read_message(message, |element| {
        found += 1;
        let _ = element.range();
        singles.take(element.clone());
        intervals.take(element);
    });
    let _ = intervals.finish(true);
    is_read.is_ok() && singles.finish(false).is_ok() && found > 0
}
