//! The device's counters.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::devices::virtio::Counter;

/// A number that only grows, written by the device's thread.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// One more. Returns how many there were before.
    pub fn increment(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    /// `amount` more.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// The number now.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What the device has done since the machine started.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Count,)*
        }

        impl Counters {
            /// All of them, in declaration order.
            pub fn list(&self) -> Vec<Counter> {
                vec![$(Counter { name: stringify!($name), value: self.$name.value() },)*]
            }
        }
    };
}

counters! {
    /// Packets taken from the guest.
    packets_from_guest,
    /// Packets given to the guest.
    packets_to_guest,
    /// Payload taken from the guest.
    bytes_from_guest,
    /// Payload given to the guest.
    bytes_to_guest,
    /// Payload that had to wait in the device because a reader was slow.
    bytes_parked,
    /// Connections that the guest opened and a listener got.
    connections_accepted,
    /// Connections that the host asked for.
    connections_requested,
    /// Connections that are gone again; what is left of the two above is open or drains.
    connections_closed,
    /// Packets answered with RST because nobody has the connection or listens.
    refusals,
    /// Connections refused because a cap or the host's descriptors were reached.
    connections_over_limit,
    /// Connections ended because the guest broke the protocol.
    violations,
    /// Packets or chains that no connection could be found in.
    malformed_packets,
    /// Times that the thread woke up.
    wakeups,
    /// Interrupts raised.
    interrupts,
    /// Times that the guest broke a ring.
    broken_rings,
    /// Rounds that ended for want of receive buffers.
    receive_starvations,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_the_names_and_values() {
        let counters = Counters::default();
        counters.bytes_from_guest.add(5);
        counters.violations.increment();
        let list = counters.list();
        assert_eq!(list.iter().find(|counter| counter.name == "bytes_from_guest").unwrap().value, 5);
        assert_eq!(list.iter().find(|counter| counter.name == "violations").unwrap().value, 1);
        assert_eq!(list.iter().map(|counter| counter.value).sum::<u64>(), 6);
    }
}
