//! Flow control of one connection: who may send how much (virtio 1.2, 5.10.6.3). Pure arithmetic.
//!
//! Each end tells the other, in every header, the size of its receive window (`buf_alloc`) and how
//! many bytes it has taken out of it so far (`fwd_cnt`, wrapping). The sender keeps
//! `sent - fwd_cnt <= buf_alloc`.

use super::limits::MAX_PACKET_BYTES;

/// Both directions' accounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// Our window.
    window: u32,
    /// Bytes that left our window towards the host's reader.
    forwarded: u32,
    /// The last `forwarded` that the guest was told.
    reported: u32,
    /// Bytes sent to the guest.
    sent: u32,
    /// The guest's window.
    guest_window: u32,
    /// Bytes that left the guest's window, by its last word.
    guest_forwarded: u32,
    /// The guest has been asked for its credit since it ran out.
    asked: bool,
}

impl Credit {
    /// A new connection with `window` bytes of room for the guest, and none known for us.
    pub fn new(window: u32) -> Self {
        Self { window, forwarded: 0, reported: 0, sent: 0, guest_window: 0, guest_forwarded: 0, asked: false }
    }

    /// Our window.
    pub fn window(&self) -> u32 {
        self.window
    }

    /// `buf_alloc` and `fwd_cnt` for a header that is about to leave.
    pub fn report(&mut self) -> (u32, u32) {
        self.reported = self.forwarded;
        (self.window, self.forwarded)
    }

    /// Takes the guest's word from a header. Nonsense only starves the guest itself: it makes
    /// [`Self::sendable`] smaller or larger, and the device holds none of those bytes.
    pub fn learn(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.guest_window = buf_alloc;
        self.guest_forwarded = fwd_cnt;
        if self.sendable() > 0 {
            self.asked = false;
        }
    }

    /// Bytes that the guest has room for.
    pub fn sendable(&self) -> u32 {
        self.guest_window.saturating_sub(self.sent.wrapping_sub(self.guest_forwarded))
    }

    /// `bytes` go to the guest.
    pub fn send(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// `bytes` left our window.
    pub fn forward(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
    }

    /// Whether `length` more bytes fit beside the `parked` ones that are in the window now.
    pub fn admits(&self, parked: u32, length: u32) -> bool {
        parked.checked_add(length).is_some_and(|total| total <= self.window)
    }

    /// Whether the guest should hear about its credit: it believes that less than a packet fits,
    /// and the news is worth a packet. When everything is forwarded, both hold long before the
    /// guest runs dry (a test goes through all cases).
    pub fn update_due(&self, parked: u32) -> bool {
        let threshold = MAX_PACKET_BYTES.min(self.window / 2);
        let unreported = self.forwarded.wrapping_sub(self.reported);
        let believed_free = self.window.saturating_sub(parked).saturating_sub(unreported);
        unreported >= threshold / 2 && believed_free < threshold
    }

    /// Whether to ask the guest for credit: once each time that it runs out.
    pub fn request_due(&self) -> bool {
        self.sendable() == 0 && !self.asked
    }

    /// The question has been asked.
    pub fn requested(&mut self) {
        self.asked = true;
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::{WINDOW_LARGE, WINDOW_SMALL};
    use super::*;

    #[test]
    fn the_guest_gets_what_it_has_room_for_and_not_more() {
        let mut credit = Credit::new(WINDOW_LARGE);
        assert_eq!(credit.sendable(), 0, "nothing before the guest's first word");
        credit.learn(1000, 0);
        credit.send(600);
        assert_eq!(credit.sendable(), 400);
        credit.learn(1000, 500);
        assert_eq!(credit.sendable(), 900);
        credit.learn(50, 500);
        assert_eq!(credit.sendable(), 0, "a window smaller than what is under way");
    }

    #[test]
    fn counters_wrap() {
        let mut credit =
            Credit { sent: u32::MAX - 9, guest_forwarded: u32::MAX - 9, ..Credit::new(WINDOW_LARGE) };
        credit.learn(100, u32::MAX - 9);
        credit.send(60);
        assert_eq!(credit.sendable(), 40);
        credit.learn(100, 50); // 10 before the wrap, 50 after
        assert_eq!(credit.sendable(), 100);
    }

    #[test]
    fn a_guest_that_forwards_what_was_never_sent_gets_nothing() {
        let mut credit = Credit::new(WINDOW_LARGE);
        credit.learn(1000, 1);
        assert_eq!(credit.sendable(), 0);
    }

    #[test]
    fn the_window_is_the_cap_of_what_is_parked() {
        let credit = Credit::new(1000);
        assert!(credit.admits(0, 1000));
        assert!(credit.admits(999, 1));
        assert!(!credit.admits(999, 2));
        assert!(!credit.admits(1, u32::MAX), "no overflow");
    }

    /// A guest that sends whatever it believes to have room for, in packets of any size, never
    /// waits for an update that does not come while nothing is parked.
    #[test]
    fn a_reader_that_keeps_up_never_lets_the_guest_starve() {
        for window in [WINDOW_SMALL, WINDOW_LARGE] {
            for packet in [1, 100, 4096, 5000, 16 << 10, 64 << 10] {
                let mut credit = Credit::new(window);
                let mut guest_free = window;
                let mut updates = 0;
                let total = 4 * window;
                let mut moved = 0;
                while moved < total {
                    let length = packet.min(guest_free);
                    assert!(length > 0, "starved with window {window} and packets of {packet}");
                    guest_free -= length;
                    credit.forward(length);
                    moved += length;
                    if credit.update_due(0) {
                        let (_, forwarded) = credit.report();
                        guest_free = window - (moved - forwarded);
                        updates += 1;
                    }
                }
                assert!(updates <= 10, "{updates} updates for four windows of {window}");
            }
        }
    }

    #[test]
    fn a_slow_reader_does_not_cause_an_update_per_byte() {
        let mut credit = Credit::new(WINDOW_LARGE);
        let mut parked = WINDOW_LARGE;
        let mut updates = 0;
        while parked > 0 {
            parked -= 1;
            credit.forward(1);
            if credit.update_due(parked) {
                credit.report();
                updates += 1;
            }
        }
        assert!((1..=8).contains(&updates), "{updates} updates");
    }

    #[test]
    fn credit_is_asked_for_once_per_drought() {
        let mut credit = Credit::new(WINDOW_LARGE);
        credit.learn(10, 0);
        assert!(!credit.request_due());
        credit.send(10);
        assert!(credit.request_due());
        credit.requested();
        credit.learn(10, 0); // the answer: still nothing
        assert!(!credit.request_due());
        credit.learn(10, 10);
        credit.send(10);
        assert!(credit.request_due());
    }
}
