//! Volumes beside each other on one device.

use tokio::task::JoinHandle;

use super::*;

const SMALL: u64 = 4 << 10;

fn volume(n: u8) -> VolumeId {
    VolumeId::from_bytes([n; 16])
}

/// The requests of one volume.
struct Load {
    fairness: Fairness,
    id: u8,
    turns: Vec<Turn>,
    waiting: Vec<JoinHandle<Turn>>,
}

impl Load {
    async fn of(fairness: &Fairness, id: u8, bytes: u64, count: usize) -> Self {
        let (turns, waiting) = (Vec::new(), Vec::new());
        let mut load = Self { fairness: fairness.clone(), id, turns, waiting };
        load.ask(bytes, count).await;
        load
    }

    async fn ask(&mut self, bytes: u64, count: usize) {
        for _ in 0..count {
            let (fairness, id) = (self.fairness.clone(), volume(self.id));
            self.waiting.push(tokio::spawn(async move { fairness.write(id, bytes).await }));
        }
        self.settle().await;
    }

    async fn settle(&mut self) {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        for at in (0..self.waiting.len()).rev() {
            if self.waiting[at].is_finished() {
                self.turns.push(self.waiting.remove(at).await.expect("no panic"));
            }
        }
    }

    /// All that are under way end, and those that take their place begin.
    async fn end(&mut self) {
        self.turns.clear();
        self.settle().await;
    }

    fn counts(&self) -> (usize, usize) {
        (self.turns.len(), self.waiting.len())
    }
}

/// A volume that was seen to be greedy with a hundred requests, and one with a single request.
async fn greedy_and_modest() -> (Fairness, Load, Load) {
    let fairness = Fairness::new(Counter::default());
    let greedy = Load::of(&fairness, 1, SMALL, 100).await;
    later().await;
    let modest = Load::of(&fairness, 2, SMALL, 1).await;
    (fairness, greedy, modest)
}

/// A look at all volumes is due.
async fn later() {
    tokio::time::advance(LOOK_INTERVAL).await;
}

#[tokio::test(start_paused = true)]
async fn a_lone_volume_is_not_held_back() {
    let fairness = Fairness::new(Counter::default());
    let mut load = Load::of(&fairness, 1, SMALL, 500).await;
    later().await;
    load.ask(SMALL, 500).await;
    assert_eq!(load.counts(), (1000, 0));
}

#[tokio::test(start_paused = true)]
async fn volumes_that_are_equally_greedy_are_not_held_back() {
    let fairness = Fairness::new(Counter::default());
    let mut loads = [
        Load::of(&fairness, 1, SMALL, 100).await,
        Load::of(&fairness, 2, SMALL, 60).await,
        Load::of(&fairness, 3, 1 << 20, 2).await,
    ];
    later().await;
    for load in &mut loads {
        load.ask(SMALL, 10).await;
        assert_eq!(load.waiting.len(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_greedy_volume_has_one_request_at_a_time_beside_a_modest_one_at_first() {
    let (_, mut greedy, mut modest) = greedy_and_modest().await;
    greedy.ask(SMALL, 3).await;
    assert_eq!((modest.counts(), greedy.counts()), ((1, 0), (100, 3)));
    for waiting in [2, 1, 0] {
        greedy.end().await;
        assert_eq!(greedy.counts(), (1, waiting));
    }
    modest.ask(SMALL, 1).await;
    assert_eq!(modest.counts(), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn requests_too_large_for_the_limit_go_alone_and_in_order() {
    let fairness = Fairness::new(Counter::default());
    let mut greedy = Load::of(&fairness, 1, 1 << 20, 3).await;
    later().await;
    let _modest = Load::of(&fairness, 2, SMALL, 1).await;
    greedy.ask(1 << 20, 2).await;
    greedy.ask(0, 1).await;
    for (cost, waiting) in
        [((1 << 20) + REQUEST_COST, 2), ((1 << 20) + REQUEST_COST, 1), (REQUEST_COST, 0)]
    {
        greedy.end().await;
        assert_eq!(greedy.counts(), (1, waiting));
        assert_eq!(greedy.turns[0].request.cost, cost);
    }
}

#[tokio::test(start_paused = true)]
async fn the_greediest_still_gets_as_much_as_who_is_modest_beside_it() {
    let fairness = Fairness::new(Counter::default());
    let mut greedy = Load::of(&fairness, 1, SMALL, 100).await;
    let _modest = Load::of(&fairness, 2, SMALL, 20).await;
    later().await;
    greedy.ask(SMALL, 100).await;
    greedy.end().await;
    assert_eq!(greedy.counts(), (20, 80));
}

#[tokio::test(start_paused = true)]
async fn who_asks_no_more_holds_nobody_back() {
    let fairness = Fairness::new(Counter::default());
    let mut greedy = Load::of(&fairness, 1, SMALL, 100).await;
    later().await;
    drop(Load::of(&fairness, 2, SMALL, 1).await);
    greedy.ask(SMALL, 100).await;
    tokio::time::advance(ACTIVE_FOR).await;
    greedy.turns.truncate(99);
    greedy.settle().await;
    assert_eq!(greedy.waiting.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_gone_keep_no_turn() {
    let (fairness, mut greedy, _modest) = greedy_and_modest().await;
    greedy.ask(SMALL, 5).await;
    greedy.waiting.drain(..).for_each(|waiting| waiting.abort());
    tokio::task::yield_now().await;
    greedy.turns.clear();
    let state = fairness.lock();
    let volume = &state.volumes[&volume(1)];
    let left = (volume.under_way.len(), volume.under_way_cost, volume.queued);
    assert_eq!((left, volume.waiting.len()), ((0, 0, 0), 0));
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_long() {
    let (fairness, mut greedy, mut modest) = greedy_and_modest().await;
    greedy.ask(SMALL, 50).await;
    assert_eq!((greedy.counts(), fairness.held_back.get()), ((100, 50), 50));
    tokio::time::advance(WAIT_MAX).await;
    modest.ask(SMALL, 1).await;
    greedy.settle().await;
    assert_eq!(greedy.counts(), (150, 0));
    greedy.end().await;
    assert_eq!(fairness.lock().volumes[&volume(1)].queued, 0);
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_stuck_hold_no_others_back() {
    let (_, mut greedy, mut modest) = greedy_and_modest().await;
    greedy.ask(SMALL, 3).await;
    let stuck = greedy.turns.split_off(97);
    tokio::time::advance(COUNT_MAX - LOOK_INTERVAL).await;
    modest.ask(SMALL, 1).await;
    greedy.end().await;
    assert_eq!(greedy.counts(), (1, 2), "those that are stuck count no more");
    drop(stuck);
    greedy.settle().await;
    assert_eq!(greedy.counts(), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn refusals_say_nothing_of_what_requests_take() {
    let fairness = Fairness::new(Counter::default());
    let _greedy = Load::of(&fairness, 1, SMALL, 100).await;
    for _ in 0..100 {
        drop(fairness.write(volume(2), SMALL).await);
        assert!(fairness.lock().beside.has_seen_nothing());
    }
    let mut turn = fairness.write(volume(2), SMALL).await;
    turn.succeed();
    drop(turn);
    assert!(!fairness.lock().beside.has_seen_nothing());
}
