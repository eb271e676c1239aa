//! Which addresses are of the inside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What keeps an address from being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inside {
    /// This machine, or a private network: may be allowed for a host by name.
    Private(&'static str),
    /// Never asked: addresses of a link, where clouds serve their credentials, and addresses that are no host's.
    Never(&'static str),
}

/// What an address is, if it is not one of the public internet (IANA's registries of special-purpose addresses).
pub(super) fn inside(ip: IpAddr) -> Option<Inside> {
    match ip {
        IpAddr::V4(ip) => inside_v4(ip),
        IpAddr::V6(ip) => inside_v6(ip),
    }
}

fn inside_v4(ip: Ipv4Addr) -> Option<Inside> {
    use Inside::{Never, Private};
    let [a, b, c, _] = ip.octets();
    Some(match (a, b, c) {
        (0, ..) => Never("an unspecified address"),
        (127, ..) => Private("an address of this machine"),
        (10, ..) | (172, 16..=31, _) | (192, 168, _) => Private("a private address"),
        (100, 64..=127, _) => Private("an address behind a provider's translation"),
        (169, 254, _) => Never("a link-local address, where clouds serve credentials"),
        (192, 0, 0) | (192, 0, 2) | (192, 88, 99) | (198, 18..=19, _) | (198, 51, 100) | (203, 0, 113) => {
            Never("a reserved address")
        }
        (224..=255, ..) => Never("a multicast or reserved address"),
        _ => return None,
    })
}

fn inside_v6(ip: Ipv6Addr) -> Option<Inside> {
    use Inside::{Never, Private};
    let [a, b, c, d, e, f, g, h] = ip.segments();
    let embedded = |high: u16, low: u16| {
        let [h1, h2] = high.to_be_bytes();
        let [l1, l2] = low.to_be_bytes();
        Ipv4Addr::new(h1, h2, l1, l2)
    };
    match (a, b, c, d, e, f) {
        (0, 0, 0, 0, 0, 0) if (g, h) == (0, 1) => Some(Private("an address of this machine")),
        (0, 0, 0, 0, 0, 0) if (g, h) == (0, 0) => Some(Never("an unspecified address")),
        // An IPv4 address in another dress: mapped, compatible, translated (NAT64), 6to4.
        (0, 0, 0, 0, 0, 0 | 0xffff) | (0, 0, 0, 0, 0xffff, 0) | (0x64, 0xff9b, 0, 0, 0, 0) => inside_v4(embedded(g, h)),
        (0x2002, ..) => inside_v4(embedded(b, c)).or(Some(Never("an address of a tunnel"))),
        (0x64, 0xff9b, ..)
        | (0x2001, 0..=0x01ff, ..)
        | (0x2001, 0x0db8, ..)
        | (0x100, 0, 0, 0, ..)
        | (0x3fff, 0..=0x0fff, ..) => Some(Never("a reserved address")),
        (0xfd00, 0x0ec2, ..) => Some(Never("an address where clouds serve credentials")),
        (0xfc00..=0xfdff, ..) => Some(Private("a private address")),
        (0xfe80..=0xfebf, ..) => Some(Never("a link-local address")),
        (0xfec0..=0xfeff, ..) => Some(Private("a private address")),
        (0xff00..=0xffff, ..) => Some(Never("a multicast address")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> Option<Inside> {
        inside(text.parse().unwrap())
    }

    #[test]
    fn s13_addresses_of_the_inside_are_known_in_every_dress() {
        for private in [
            "127.0.0.1",
            "127.8.9.1",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "100.127.255.255",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "fc00::1",
            "fdab::1",
            "fec0::1",
            "::7f00:1",
        ] {
            assert!(matches!(kind(private), Some(Inside::Private(_))), "{private}: {:?}", kind(private));
        }
        for never in [
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "fe80::1",
            "::",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "192.0.2.1",
            "198.18.0.1",
            "203.0.113.9",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            "fd00:ec2::254",
            "2002:808:808::",
            "100::1",
        ] {
            assert!(matches!(kind(never), Some(Inside::Never(_))), "{never}: {:?}", kind(never));
        }
        for public in ["8.8.8.8", "172.32.0.1", "100.128.0.1", "192.0.1.1", "2606:4700::1111", "::ffff:8.8.8.8"] {
            assert_eq!(kind(public), None, "{public}");
        }
    }
}
