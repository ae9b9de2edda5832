//! SHA-256: what is compared instead of the bytes themselves.

/// The SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_the_standard_hash() {
        let hash: String = super::sha256(b"abc").iter().map(|byte| format!("{byte:02x}")).collect();
        // FIPS 180-4, the first example.
        assert_eq!(hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
