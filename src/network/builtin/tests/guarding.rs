//! What happens beside the network: others change rules, and kernels lack parts.

use std::sync::Arc;

use tokio::sync::Notify;

use super::*;
use crate::network::mode::{RETRY, guard};
use crate::sys::netlink::Socket;

/// `NFT_TABLE_F_OWNER`: nobody but the socket that made the table changes it, and it goes with the socket (Linux 5.12).
const OWNED: u32 = 2;

fn remove_tables(socket: &mut Socket, then: Option<Message>) {
    let flush = [nft::delete_table(nft::INET, rules::TABLE), nft::delete_table(nft::FRAMES, rules::TABLE)];
    socket.transaction("flush", nft::transaction(flush.into_iter().chain(then).collect())).unwrap();
}

fn on_a_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// Waits until the guard heard of a change.
async fn heard(status: &Notify, change: &mut impl FnMut()) {
    loop {
        change();
        // Whoever does not listen yet hears of the next one.
        if tokio::time::timeout(10 * RETRY, status.notified()).await.is_ok() {
            return;
        }
    }
}

/// Somebody puts a table of our name, which the kernel keeps for them, in the place of ours: the repair fails for as long as that
/// lasts, and is tried until it does not.
#[test]
#[ignore = "needs root"]
fn a_repair_that_fails_is_tried_again() {
    on_own_host(|host| {
        let network = Arc::new(host.network());
        network.attach(&host.pod("a", &[8080])).unwrap();
        on_a_runtime(async {
            let status = Arc::new(Notify::new());
            let guard = crate::task::spawn("guard", guard(Arc::downgrade(&network), Arc::clone(&status)));
            let mut thief = Socket::open(Family::Netfilter).unwrap();
            // A change of rules that are not ours has Status look for what is in the way.
            heard(&status, &mut || {
                let other = vec![nft::add_table(nft::INET, "other"), nft::delete_table(nft::INET, "other")];
                thief.transaction("other", nft::transaction(other)).unwrap();
            })
            .await;
            remove_tables(&mut thief, Some(nft::add_table(nft::INET, rules::TABLE).be32(2, OWNED)));
            // Time for some attempts. Would there be none, the test would only show less.
            tokio::time::sleep(10 * RETRY).await;
            assert!(network.repair().is_err());
            assert_eq!((count(&network, "links"), network.attach(&host.pod("b", &[])).is_err()), (0, true));
            drop(thief);
            while network.standing() != Standing::of(1) {
                tokio::time::sleep(RETRY).await;
            }
            network.attach(&host.pod("b", &[8081])).unwrap();
            assert_eq!(network.standing(), Standing::of(2));
            drop(network);
            guard.await.unwrap();
        });
    });
}

/// Without `nf_conntrack_netlink`, which is a module of its own, the kernel answers as it does for a subsystem that no kernel has.
#[test]
#[ignore = "needs root"]
fn a_kernel_that_does_not_show_its_connections_still_has_pods() {
    on_own_host(|host| {
        let network = host.network();
        let nobodys = |socket: &mut Socket| socket.request("nobody", Message::new(0x7f << 8, 0, &[0; 4])).map(|()| 0);
        let refused = nobodys(&mut Socket::open(Family::Netfilter).unwrap()).unwrap_err();
        assert!(flows::is_unsupported(&refused), "{refused:?}");
        for _ in 0..2 {
            network.flows(nobodys).unwrap();
            assert!(network.no_flows.load(Ordering::Relaxed));
        }
        // Other refusals are told.
        let missing = |socket: &mut Socket| {
            socket
                .request("connection", Message::new(10 << 8 | 1, 0, &[nft::INET, 0, 0, 0]).string(1, "none"))
                .map(|()| 0)
        };
        assert!(matches!(network.flows(missing), Err(BuiltinError::Netlink(error)) if error.is_missing()));
    });
}
