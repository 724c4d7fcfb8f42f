//! Caps of the vsock device, each with its reason. The guest can push against all of them.

/// Receive and transmit ring. 64 of Linux' 4 KiB receive buffers are 256 KiB, a whole window, and
/// the driver fills all of them at boot, so each further one costs every pod 4 KiB.
pub const RING_SIZE: u16 = 64;
/// Event ring. The device raises no event (it never migrates); Linux posts exactly 8 buffers.
pub const EVENT_RING_SIZE: u16 = 8;

/// Largest payload of one packet: what Linux sends at most (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`).
pub const MAX_PACKET_BYTES: u32 = 64 << 10;
/// Most pieces of host memory that one descriptor chain may describe. Linux' largest packet has
/// the header and 17 fragments.
pub const MAX_SEGMENTS: usize = 32;

/// Connections at one time, draining ones included. Each costs the host two descriptors; 256
/// containers with three streams each fit. One more is refused with RST.
pub const MAX_CONNECTIONS: usize = 1024;
/// Receive window of a connection: Linux never has more than its own 256 KiB under way, so a
/// larger window would be memory promised for nothing.
pub const WINDOW_LARGE: u32 = 256 << 10;
/// Window of a connection when the budget no longer holds a large one.
pub const WINDOW_SMALL: u32 = 16 << 10;
/// Bytes that all windows together promise to hold. A window is memory that the guest can fill
/// while the host's readers stand still, so this is what a hostile guest can make the device
/// allocate. Enough for every connection's small window and about 70 large ones.
pub const WINDOW_BUDGET: usize = 32 << 20;

/// Refusals (RST without a connection) that wait for receive buffers. Beyond it the device takes
/// nothing more from the guest until the guest has taken some: a guest that asks and never
/// listens stands still instead of filling the host.
pub const MAX_REFUSALS: usize = 256;
/// Guest's connections to one port that the host has not taken yet; one more is refused with RST.
pub const ACCEPT_BACKLOG: usize = 128;
/// Host's connections that wait for the guest to bring the device up.
pub const MAX_PENDING_CONNECTS: usize = 64;

/// What the host's end of a pair queues in the kernel (SO_SNDBUF; the kernel doubles it for its
/// bookkeeping and holds it to `wmem_max`): a turn's worth several times, so that a writer that is
/// scheduled late stalls nothing. The device's end queues a window: the common case then parks no
/// byte in the device, and what the guest can make the kernel hold is bounded as the windows are.
/// Unix sockets charge the sender only, so SO_RCVBUF would change nothing and is left alone.
pub const HOST_BUFFER_BYTES: usize = 256 << 10;

/// Bytes that one connection sends before the next one's turn: one large packet's worth.
pub const TURN_BYTES: u32 = MAX_PACKET_BYTES;
/// Receive buffers that one turn takes: 64 KiB in Linux' buffers of 3.7 KiB. It is also within
/// what one vectored call moves.
pub const TURN_BUFFERS: usize = 18;
/// Chains that one round takes from each ring before the thread looks at its other descriptors.
pub const ROUND_CHAINS: usize = 64;

/// How long the driver may wait to hear that the device is done with its transmit buffers, when
/// nothing else interrupts it. An interrupt costs the guest three exits, two of them to us; an
/// answer within this time brings the news for free.
pub const TRANSMIT_HOLD_MS: i32 = 20;
/// Rounds after which it hears in any case; they may be shorter than the hold.
pub const TRANSMIT_HOLD_ROUNDS: u32 = 16;

/// First port of connections that the host opens. Listeners live below (see `protocol::ports`).
pub const FIRST_HOST_PORT: u32 = 1 << 31;

// Every connection can have the small window, whatever the others have.
const _: () = assert!(MAX_CONNECTIONS * WINDOW_SMALL as usize <= WINDOW_BUDGET);
