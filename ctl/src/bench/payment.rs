//! A payment as TPC-C has it, cut down to what a key-value store sees: one transaction adds the amount to a warehouse, to
//! one of its districts and to a customer, and inserts a receipt. Every row is an amount in cents and padding.
//!
//! Invariant: what warehouses, districts and customers have received is the sum of the receipts.

use bytes::{BufMut as _, Bytes, BytesMut};
use kvclient::Transaction;

use super::chooser::Random;
use super::target::read;
use super::worker::{Failure, KEY_PREFIX};

/// Districts of a warehouse.
pub const DISTRICTS: u64 = 10;
/// Customers of a district.
pub const CUSTOMERS: u64 = 300;
/// Payments by customers of another warehouse, percent.
const REMOTE_PERCENT: u64 = 15;
const AMOUNT_MAX: u64 = 500_000;

/// Rows of a number of warehouses.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    pub warehouses: u64,
    /// Bytes of a row, at least those of its amount.
    pub row_bytes: usize,
}

/// Whose payment it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payment {
    /// Warehouse, district and customer.
    pub rows: [Bytes; 3],
    pub receipt: Bytes,
    pub amount: u64,
}

impl Rows {
    /// Every row that must be there before the first payment.
    pub fn keys(self) -> impl Iterator<Item = Bytes> {
        (0..self.warehouses).flat_map(|w| {
            let districts = (0..DISTRICTS).flat_map(move |d| {
                let customers = (0..CUSTOMERS).map(move |c| key(b'c', &[w, d, c]));
                std::iter::once(key(b'd', &[w, d])).chain(customers)
            });
            std::iter::once(key(b'w', &[w])).chain(districts)
        })
    }

    /// How many those are.
    pub fn count(self) -> u64 {
        self.warehouses * (1 + DISTRICTS * (1 + CUSTOMERS))
    }

    /// A row with this amount.
    pub fn row(self, amount: u64) -> Bytes {
        let mut row = BytesMut::with_capacity(self.row_bytes.max(8));
        row.put_u64(amount);
        row.resize(self.row_bytes.max(8), b'.');
        row.freeze()
    }

    /// The next payment of a worker; `number` is different for each payment of a run.
    pub fn draw(self, random: &mut Random, number: u128) -> Payment {
        let (warehouse, district) = (random.below(self.warehouses), random.below(DISTRICTS));
        let remote = self.warehouses > 1 && random.below(100) < REMOTE_PERCENT;
        let home = match remote {
            true => (warehouse + 1 + random.below(self.warehouses - 1)) % self.warehouses,
            false => warehouse,
        };
        let customer = key(b'c', &[home, random.below(DISTRICTS), random.below(CUSTOMERS)]);
        let rows = [key(b'w', &[warehouse]), key(b'd', &[warehouse, district]), customer];
        let receipt = key(b'h', &[(number >> 64) as u64, number as u64]);
        Payment { rows, receipt, amount: 1 + random.below(AMOUNT_MAX) }
    }
}

/// Pays, in an open transaction.
pub async fn pay(txn: &mut Transaction, rows: Rows, payment: &Payment) -> Result<(), Failure> {
    let found = read(txn, &payment.rows).await?;
    if found.len() != payment.rows.len() {
        return Err(Failure::told(format!("{} of {} rows are there", found.len(), payment.rows.len())));
    }
    for pair in found {
        let Some(sum) = pair.value.first_chunk().map(|bytes| u64::from_be_bytes(*bytes)) else {
            return Err(Failure::told("a row without an amount".into()));
        };
        txn.put(pair.key, rows.row(sum.saturating_add(payment.amount))).await?;
    }
    Ok(txn.put(payment.receipt.clone(), rows.row(payment.amount)).await?)
}

/// The key of a row: what it is, then its numbers.
fn key(table: u8, numbers: &[u64]) -> Bytes {
    let mut key = BytesMut::with_capacity(KEY_PREFIX.len() + 1 + 8 * numbers.len());
    key.put_slice(KEY_PREFIX);
    key.put_u8(table);
    numbers.iter().for_each(|number| key.put_u64(*number));
    key.freeze()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn payments_touch_rows_that_are_there() {
        let rows = Rows { warehouses: 3, row_bytes: 100 };
        let keys: BTreeSet<Bytes> = rows.keys().collect();
        assert_eq!(keys.len() as u64, rows.count());
        let mut random = Random::new(1);
        let mut remote = 0;
        for number in 0..1_000 {
            let payment = rows.draw(&mut random, number);
            assert!(payment.rows.iter().all(|key| keys.contains(key)) && !keys.contains(&payment.receipt));
            assert!((1..=AMOUNT_MAX).contains(&payment.amount));
            let warehouse = KEY_PREFIX.len() + 1..KEY_PREFIX.len() + 9;
            remote += u32::from(payment.rows[0][warehouse.clone()] != payment.rows[2][warehouse]);
        }
        assert!((100..200).contains(&remote), "{remote} of 1000 are of another warehouse");
        assert_ne!(rows.draw(&mut random, 1).receipt, rows.draw(&mut random, 1 << 64).receipt);
    }

    #[test]
    fn rows_have_their_size_and_their_amount() {
        let rows = Rows { warehouses: 1, row_bytes: 100 };
        let row = rows.row(7);
        assert_eq!((row.len(), &row[..8]), (100, &7_u64.to_be_bytes()[..]));
        assert_eq!(Rows { row_bytes: 0, ..rows }.row(7).len(), 8, "never less than the amount");
    }
}
