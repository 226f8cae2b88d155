//! What the MDS has ordered to be scrubbed here, and how far that is. Pure memory: what is under
//! way when the process ends begins anew.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use curve_types::{ChunkKey, CopysetId};
use curve_wire::proto::{ScrubOrder, ScrubReport};

/// A chunk with a block that no peer gives is read so often, after all others.
const TRIES: u32 = 3;

/// All that is ordered now, by copyset.
#[derive(Default)]
pub(super) struct Book {
    scrubs: BTreeMap<CopysetId, Scrub>,
}

struct Scrub {
    order: ScrubOrder,
    report: ScrubReport,
    /// None until the chunks are listed.
    left: Option<VecDeque<Visit>>,
}

/// A chunk to be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Visit {
    pub key: ChunkKey,
    /// Visits before it that ended without a repair.
    pub tries: u32,
}

impl Visit {
    pub fn is_last(self) -> bool {
        self.tries + 1 >= TRIES
    }
}

/// What is to be done next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Step {
    pub copyset: CopysetId,
    pub number: u64,
    /// In which all that the device stores would be read.
    pub period: Duration,
    /// None: list the chunks.
    pub visit: Option<Visit>,
}

/// What became of damaged blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Found {
    pub repaired: u64,
    pub lost: u64,
    /// A peer may have their bytes.
    pub unrepaired: u64,
}

impl Scrub {
    fn begin(order: ScrubOrder) -> Self {
        let report = ScrubReport { number: order.number, ..ScrubReport::default() };
        Self { order, report, left: None }
    }

    fn end_if_done(&mut self) -> bool {
        self.report.ended = self.left.as_ref().is_some_and(VecDeque::is_empty);
        self.report.ended
    }
}

impl Book {
    /// Takes over the orders of a heartbeat's answer: they are all that there are.
    pub fn on_orders(&mut self, orders: Vec<ScrubOrder>) {
        let mut known = std::mem::take(&mut self.scrubs);
        for order in orders {
            let id = CopysetId(order.copyset);
            let scrub = match known.remove(&id).filter(|scrub| scrub.order.number == order.number) {
                Some(scrub) => Scrub { order, ..scrub },
                None => Scrub::begin(order),
            };
            self.scrubs.insert(id, scrub);
        }
    }

    /// The oldest of those that are to go on.
    pub fn next(&self) -> Option<Step> {
        let goes_on = |(_, scrub): &(&CopysetId, &Scrub)| scrub.order.walk && !scrub.report.ended;
        let oldest = self.scrubs.iter().filter(goes_on);
        let (copyset, scrub) = oldest.min_by_key(|(_, scrub)| scrub.order.number)?;
        Some(Step {
            copyset: *copyset,
            number: scrub.order.number,
            period: Duration::from_secs(scrub.order.period_secs),
            visit: scrub.left.as_ref().and_then(|left| left.front().copied()),
        })
    }

    fn of(&mut self, step: Step) -> Option<&mut Scrub> {
        self.scrubs.get_mut(&step.copyset).filter(|scrub| scrub.order.number == step.number)
    }

    /// True if there is nothing to read.
    pub fn on_listed(&mut self, step: Step, keys: Vec<ChunkKey>) -> bool {
        let Some(scrub) = self.of(step) else { return false };
        scrub.report.chunks = keys.len() as u64;
        scrub.left = Some(keys.into_iter().map(|key| Visit { key, tries: 0 }).collect());
        scrub.end_if_done()
    }

    /// So much of a visit was read, and so many blocks repaired.
    pub fn on_read(&mut self, step: Step, bytes: u64, repaired: u64) {
        let Some(scrub) = self.of(step) else { return };
        scrub.report.bytes_read += bytes;
        scrub.report.repaired += repaired;
    }

    /// A visit is over, in which all this was found. True if it was the last of the copyset.
    pub fn on_visited(&mut self, step: Step, found: Found) -> bool {
        let Some(scrub) = self.of(step) else { return false };
        let Some(visit) = scrub.left.as_mut().and_then(VecDeque::pop_front) else { return false };
        if found.unrepaired > 0 && !visit.is_last() {
            let again = Visit { tries: visit.tries + 1, ..visit };
            scrub.left.get_or_insert_default().push_back(again);
        } else {
            // What is not repaired is found by every visit of the chunk, and counts once.
            scrub.report.lost += found.lost;
            scrub.report.unrepaired += found.unrepaired;
            scrub.report.chunks_read += 1;
        }
        scrub.end_if_done()
    }

    /// The copyset could not be read: it is begun anew.
    pub fn on_failed(&mut self, step: Step) {
        if let Some(scrub) = self.of(step) {
            let repaired = scrub.report.repaired;
            *scrub = Scrub::begin(scrub.order);
            scrub.report.repaired = repaired;
        }
    }

    /// Copysets whose leader is to let all replicas make a digest, with the numbers of the scrubs.
    pub fn digests_wanted(&self) -> Vec<(CopysetId, u64)> {
        let wanted = self.scrubs.iter().filter(|(_, scrub)| scrub.order.digest);
        wanted.map(|(id, scrub)| (*id, scrub.order.number)).collect()
    }

    /// Without digests.
    pub fn reports(&self) -> BTreeMap<CopysetId, ScrubReport> {
        self.scrubs.iter().map(|(id, scrub)| (*id, scrub.report)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use curve_types::{ChunkIndex, VolumeId};

    fn order(copyset: u32, number: u64) -> ScrubOrder {
        ScrubOrder { copyset, number, walk: true, ..ScrubOrder::default() }
    }

    fn key(n: u32) -> ChunkKey {
        ChunkKey { volume: VolumeId::default(), index: ChunkIndex(n) }
    }

    fn visit(book: &mut Book, found: Found) -> bool {
        let step = book.next().expect("something to read");
        book.on_read(step, 10, found.repaired);
        book.on_visited(step, found)
    }

    #[test]
    fn the_oldest_order_goes_first_and_keeps_its_place_while_it_is_held() {
        let mut book = Book::default();
        assert_eq!(book.next(), None);
        book.on_orders(vec![order(1, 8), order(2, 7)]);
        let step = book.next().expect("ordered");
        assert_eq!((step.copyset, step.visit), (CopysetId(2), None));
        assert!(!book.on_listed(step, vec![key(1), key(2)]));
        assert!(!visit(&mut book, Found::default()));
        // The window has closed, and somebody wants the other one now.
        book.on_orders(vec![order(1, 8), ScrubOrder { walk: false, ..order(2, 7) }]);
        assert_eq!(book.next().map(|step| step.copyset), Some(CopysetId(1)));
        let step = book.next().expect("ordered");
        assert!(book.on_listed(step, Vec::new()), "nothing to read is read at once");
        assert_eq!(book.next(), None);
        book.on_orders(vec![order(2, 7)]);
        assert_eq!(book.next().and_then(|step| step.visit).map(|visit| visit.key), Some(key(2)));
        assert!(visit(&mut book, Found::default()));
        let report = book.reports()[&CopysetId(2)];
        assert_eq!((report.chunks_read, report.chunks, report.bytes_read), (2, 2, 20));
        assert!(report.ended);
        book.on_orders(Vec::new());
        assert!(book.reports().is_empty());
    }

    #[test]
    fn a_higher_number_begins_anew_and_a_late_step_of_the_old_one_does_nothing() {
        let mut book = Book::default();
        book.on_orders(vec![order(1, 1)]);
        let old = book.next().expect("ordered");
        book.on_listed(old, vec![key(1)]);
        let old = book.next().expect("ordered");
        book.on_orders(vec![order(1, 2)]);
        book.on_read(old, 10, 0);
        assert!(!book.on_visited(old, Found::default()));
        let report = book.reports()[&CopysetId(1)];
        assert_eq!((report.number, report.bytes_read, report.ended), (2, 0, false));
        assert_eq!(book.next().expect("ordered").visit, None);
    }

    #[test]
    fn a_chunk_whose_repair_gets_no_answer_is_visited_again_after_the_others() {
        let mut book = Book::default();
        book.on_orders(vec![order(1, 1)]);
        let step = book.next().expect("ordered");
        book.on_listed(step, vec![key(1), key(2)]);
        let unrepaired = Found { repaired: 1, lost: 1, unrepaired: 1 };
        assert!(!visit(&mut book, unrepaired));
        assert!(!visit(&mut book, Found::default()));
        assert!(!visit(&mut book, unrepaired));
        assert_eq!(book.reports()[&CopysetId(1)].unrepaired, 0);
        assert!(visit(&mut book, unrepaired), "the last try");
        let report = book.reports()[&CopysetId(1)];
        assert_eq!((report.repaired, report.unrepaired, report.chunks_read), (3, 1, 2));
        assert_eq!(report.lost, 1);
    }
}
