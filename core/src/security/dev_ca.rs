//! The development certificate authority: what makes TLS work on one machine without anything to set up.
//!
//! Keys are ECDSA P-256, which every client knows. The authority lives for ten years, servers' certificates for one:
//! whoever starts a server has a new one issued. The authority's key stays on the disk beside its certificate, which is
//! why a cluster that others can reach brings its own authority instead.

use std::{
    fs,
    io::Write,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use drsdb_proto::{ErrorCode, WireError, ids};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{Role, identity::INTERNAL_DOMAIN, tls::TlsFiles};
use crate::{Error, Result};

const DAY: Duration = Duration::from_secs(24 * 3600);
const CA_LIFETIME: Duration = Duration::from_secs(3650 * DAY.as_secs());
const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(365 * DAY.as_secs());

/// An authority in a folder: `ca.pem` for everybody, `ca.key` for its owner alone.
#[derive(Debug)]
pub struct DevCa {
    certificate_file: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl DevCa {
    /// The authority in `dir`, made if there is none. Safe to call from several processes at once.
    pub fn open_or_create(dir: &Path) -> Result<DevCa> {
        fs::create_dir_all(dir).map_err(|error| Error::io(format!("creating {}", dir.display()), error))?;
        let lock_file = dir.join("ca.lock");
        let lock = fs::File::create(&lock_file)
            .and_then(|file| file.lock().map(|()| file))
            .map_err(|error| Error::io(format!("locking {}", lock_file.display()), error))?;

        let (certificate_file, key_file) = (dir.join("ca.pem"), dir.join("ca.key"));
        // The certificate is written last: with it, all is there.
        if !certificate_file.exists() {
            let key = new_key()?;
            let certificate = ca_params().self_signed(&key).map_err(rcgen_defect)?;
            write_file(&key_file, &key.serialize_pem(), Access::Owner)?;
            write_file(&certificate_file, &certificate.pem(), Access::Everybody)?;
        }
        drop(lock);

        let read = |path: &Path| {
            fs::read_to_string(path).map_err(|error| unusable(dir, format!("{}: {error}", path.display())))
        };
        let certificate = read(&certificate_file)?;
        let key = KeyPair::from_pem(&read(&key_file)?).map_err(|error| unusable(dir, format!("ca.key: {error}")))?;
        check_pair(&certificate, &key).map_err(|why| unusable(dir, why))?;
        let issuer =
            Issuer::from_ca_cert_pem(&certificate, key).map_err(|error| unusable(dir, format!("ca.pem: {error}")))?;
        Ok(DevCa { certificate_file, issuer })
    }

    /// The file that clients trust.
    pub fn certificate_file(&self) -> &Path {
        &self.certificate_file
    }

    /// Issues a server's certificate into `dir`, as `server.pem` and `server.key`; what was there before is replaced.
    /// It is for `localhost`, 127.0.0.1, ::1, the role's name, and `hosts` (DNS names and IP addresses).
    pub fn issue(&self, dir: &Path, role: Role, hosts: &[&str]) -> Result<TlsFiles> {
        fs::create_dir_all(dir).map_err(|error| Error::io(format!("creating {}", dir.display()), error))?;
        let key = new_key()?;
        let certificate = server_params(role, hosts)?.signed_by(&key, &self.issuer).map_err(rcgen_defect)?;
        let files = TlsFiles {
            ca: self.certificate_file.clone(),
            certificate: dir.join("server.pem"),
            key: dir.join("server.key"),
        };
        write_file(&files.key, &key.serialize_pem(), Access::Owner)?;
        write_file(&files.certificate, &certificate.pem(), Access::Everybody)?;
        Ok(files)
    }
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("drsdb development CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(params, CA_LIFETIME)
}

fn server_params(role: Role, hosts: &[&str]) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    let mut names = vec!["localhost", "127.0.0.1", "::1", role.dns_name()];
    for &host in hosts {
        let lower = host.to_ascii_lowercase();
        if lower == INTERNAL_DOMAIN || lower.ends_with(&format!(".{INTERNAL_DOMAIN}")) {
            let message = format!("{host} is no host: names below {INTERNAL_DOMAIN} say what a server is");
            return Err(Error::new(ErrorCode::InvalidArgument, message));
        }
        if !names.contains(&host) {
            names.push(host);
        }
    }
    for name in names {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.try_into().map_err(|_| {
                let message = format!("{name:?} is neither a DNS name nor an IP address");
                WireError::new(ErrorCode::InvalidArgument, message).with_hint("name the host that clients connect to")
            })?),
        });
    }
    params.distinguished_name = named(&format!("drsdb {role} server"));
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(valid_for(params, CERTIFICATE_LIFETIME))
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// Valid from yesterday on: the clock of a container or virtual machine beside this one may be behind.
fn valid_for(mut params: CertificateParams, lifetime: Duration) -> CertificateParams {
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_millis(ids::unix_ms());
    params.not_before = now - DAY;
    params.not_after = now + lifetime;
    params
}

fn new_key() -> Result<KeyPair> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(rcgen_defect)
}

/// Checks that `key` belongs to the first certificate in `pem`; rcgen would sign with any key.
fn check_pair(pem: &str, key: &KeyPair) -> Result<(), String> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| format!("ca.pem: {error}"))?;
    let (_, certificate) = X509Certificate::from_der(&der).map_err(|error| format!("ca.pem: {error}"))?;
    if certificate.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return Err("ca.key is not the key of ca.pem".to_owned());
    }
    Ok(())
}

enum Access {
    Owner,
    Everybody,
}

/// Writes all of a file or nothing: a server that starts at the same time never reads half a key.
fn write_file(path: &Path, text: &str, access: Access) -> Result<()> {
    let partial = path.with_extension(format!("partial-{}", ids::new_ulid()));
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(match access {
            Access::Owner => 0o600,
            Access::Everybody => 0o644,
        });
    }
    let written = options.open(&partial).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&partial, path)).map_err(|error| {
        let _ = fs::remove_file(&partial);
        Error::io(format!("writing {}", path.display()), error)
    })
}

fn unusable(dir: &Path, why: String) -> Error {
    WireError::new(ErrorCode::InvalidArgument, format!("the development CA in {} is unusable: {why}", dir.display()))
        .with_hint("restore ca.pem and ca.key, or remove both: a new authority is made, which clients must trust anew")
        .into()
}

fn rcgen_defect(error: rcgen::Error) -> Error {
    Error::internal(format!("a certificate could not be made: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(files: &TlsFiles) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(&files.certificate).unwrap()
    }

    #[test]
    fn the_authority_survives_and_its_key_is_private() {
        let dir = tempfile::tempdir().unwrap();
        DevCa::open_or_create(dir.path()).unwrap();
        let before = fs::read(dir.path().join("ca.pem")).unwrap();
        let ca = DevCa::open_or_create(dir.path()).unwrap();
        assert_eq!(fs::read(ca.certificate_file()).unwrap(), before);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let files = ca.issue(&dir.path().join("s"), Role::Index, &[]).unwrap();
            for key in [dir.path().join("ca.key"), files.key] {
                assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
            }
        }
    }

    #[test]
    fn many_processes_make_one_authority() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            let open = || DevCa::open_or_create(dir.path()).unwrap().issuer.key().public_key_pem();
            let opened: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            let keys: std::collections::HashSet<_> = opened.into_iter().map(|thread| thread.join().unwrap()).collect();
            assert_eq!(keys.len(), 1);
        });
    }

    #[test]
    fn a_certificate_has_its_role_hosts_and_a_limited_life() {
        let dir = tempfile::tempdir().unwrap();
        let ca = DevCa::open_or_create(dir.path()).unwrap();
        for role in Role::ALL {
            let files = ca.issue(dir.path(), role, &["db.example", "10.0.0.7", "localhost"]).unwrap();
            let der = certificate(&files);
            assert_eq!(Role::of_certificate(&der), Some(role));
            let (_, parsed) = X509Certificate::from_der(&der).unwrap();
            let names = &parsed.subject_alternative_name().unwrap().unwrap().value.general_names;
            assert_eq!(names.len(), 6, "{names:?}");
            let days = (parsed.validity().not_after.timestamp() - parsed.validity().not_before.timestamp()) / 86400;
            assert_eq!(days, 366);
        }
    }

    #[test]
    fn a_host_cannot_smuggle_a_role_in() {
        let dir = tempfile::tempdir().unwrap();
        let ca = DevCa::open_or_create(dir.path()).unwrap();
        for host in
            ["index.drsdb.internal", "INDEX.DRSDB.INTERNAL", "a.b.drsdb.internal", "drsdb.internal", "ä.example"]
        {
            let error = ca.issue(dir.path(), Role::Storage, &[host]).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument, "{host}");
        }
    }

    #[test]
    fn a_damaged_authority_is_refused_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        DevCa::open_or_create(dir.path()).unwrap();
        let key_file = dir.path().join("ca.key");
        fs::write(&key_file, new_key().unwrap().serialize_pem()).unwrap();
        let error = DevCa::open_or_create(dir.path()).unwrap_err();
        assert!(error.to_string().contains("not the key of ca.pem"), "{error}");
        fs::remove_file(&key_file).unwrap();
        assert_eq!(DevCa::open_or_create(dir.path()).unwrap_err().code(), ErrorCode::InvalidArgument);
    }
}
