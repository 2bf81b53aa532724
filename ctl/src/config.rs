//! `kvctl config`: the settings of the scheduler that can be changed while the cluster runs.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::admin_api::AdminApi;
use crate::cli::{Config, Global};
use crate::error::{Error, Result};
use crate::table;

/// Where the scheduler has them.
pub(crate) const PATH: &str = "/pd/api/v1/config/schedule";

/// Runs a verb.
pub async fn run(global: &Global, verb: Config) -> Result<()> {
    let api = AdminApi::connect(global).await?;
    let settings: BTreeMap<String, Value> = match verb {
        Config::Show => api.get(PATH).await?,
        Config::Set { key, value } => {
            let value = parse(&value)?;
            api.post(PATH, &Value::Object([(key, value)].into_iter().collect())).await?
        }
    };
    global.output.print(&settings, |settings| {
        table::facts(settings.iter().map(|(key, value)| (key.as_str(), text(value))))
    })
}

fn parse(text: &str) -> Result<Value> {
    match serde_json::from_str(text) {
        Ok(value @ (Value::Bool(_) | Value::Number(_))) => Ok(value),
        Err(_) if is_duration(text) => Ok(Value::String(text.into())),
        _ => Err(Error::Usage(format!("{text:?} is neither a number, nor a duration, nor true or false"))),
    }
}

/// A setting without the quotes of JSON.
pub(crate) fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

/// Whether the text looks like `10m`; the scheduler judges it.
fn is_duration(text: &str) -> bool {
    let number = ["ms", "s", "m", "h"].iter().find_map(|unit| text.strip_suffix(unit));
    number.is_some_and(|number| number.parse::<u64>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_numbers_durations_and_flags() {
        assert_eq!((parse("8").unwrap(), parse("false").unwrap()), (8.into(), false.into()));
        assert_eq!((parse("5m").unwrap(), parse("30s").unwrap()), ("5m".into(), "30s".into()));
        assert_eq!(parse("m").unwrap_err().exit_code(), 2);
        assert_eq!(parse("eight").unwrap_err().exit_code(), 2);
        assert_eq!(parse("[1]").unwrap_err().exit_code(), 2);
    }
}
