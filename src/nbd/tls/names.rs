//! The names in a certificate.

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The names by which a certificate that has been verified calls its owner: the DNS names, mail addresses and URIs of its
/// subjectAltName, and its common name.
pub fn of(certificate: &CertificateDer<'_>) -> Vec<String> {
    // What does not parse has no name, and so matches none.
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    let mut names: Vec<String> = common.map(str::to_owned).collect();
    if let Ok(Some(alternative)) = certificate.subject_alternative_name() {
        names.extend(alternative.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => {
                Some((*name).to_owned())
            }
            _ => None,
        }));
    }
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    #[test]
    fn a_certificate_has_the_names_that_its_authority_signed() {
        let mut parameters = CertificateParams::new(vec!["db1.example".to_owned(), "10.0.0.5".to_owned()]).unwrap();
        parameters.distinguished_name.push(DnType::CommonName, "database one");
        parameters.subject_alt_names.push(SanType::URI("spiffe://example/db1".try_into().unwrap()));
        let certificate = parameters.self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert_eq!(of(certificate.der()), ["database one", "db1.example", "spiffe://example/db1"]);
        assert_eq!(of(&CertificateDer::from(vec![1, 2, 3])), [""; 0]);
    }
}
