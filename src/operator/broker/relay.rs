//! The way from a replica to the one that leads.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use crate::tls::{self, Authority, Roots};

/// Whom a replica believes to be the leader.
#[derive(Debug)]
pub struct Relay {
    /// With TLS: the CA, and the name that every replica's certificate is for.
    tls: Option<(Arc<Authority>, String)>,
    /// The last way that was used. It is made anew for another leader or another CA.
    made: Mutex<Option<Made>>,
}

#[derive(Clone, Debug)]
struct Made {
    leader: String,
    roots: Option<Arc<Roots>>,
    client: reqwest::Client,
    url: String,
}

impl Relay {
    /// Leaders are asked in plain HTTP.
    pub fn plain() -> Self {
        Relay { tls: None, made: Mutex::default() }
    }

    /// Leaders must show a certificate for this name, that of the service: a lease has addresses,
    /// which no certificate is for.
    pub fn verified(authority: Arc<Authority>, name: String) -> Self {
        Relay { tls: Some((authority, name)), made: Mutex::default() }
    }

    /// A client and the URL with which it reaches the leader.
    pub(super) fn to(&self, leader: &str) -> reqwest::Result<(reqwest::Client, String)> {
        let roots = self.tls.as_ref().map(|(authority, _name)| authority.roots());
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |made: &&Made| {
            let same_roots = match (&made.roots, &roots) {
                (Some(old), Some(new)) => Arc::ptr_eq(old, new),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            };
            made.leader == leader && same_roots
        };
        if let Some(made) = made.as_ref().filter(same) {
            return Ok((made.client.clone(), made.url.clone()));
        }
        let mut builder = tls::client(roots.as_deref());
        let mut url = leader.to_owned();
        let address = leader.strip_prefix("https://").and_then(|it| it.parse::<SocketAddr>().ok());
        if let (Some((_authority, name)), Some(address)) = (&self.tls, address) {
            builder = builder.resolve(name, address);
            url = format!("https://{name}:{}", address.port());
        }
        let client = builder.build()?;
        let (leader, new) = (leader.to_owned(), (client.clone(), url.clone()));
        *made = Some(Made { leader, roots, client, url });
        Ok(new)
    }
}
