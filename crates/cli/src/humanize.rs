//! Numbers as `vmstat -m` prints them: libxo's `humanize` with one decimal below ten.

/// A number scaled to the largest unit that leaves a whole part, without blank between figure and unit.
///
/// `divisor` 1000 writes `k`, 1024 writes `K`, as libxo does. One decimal when the rounded figure is below ten and a unit was
/// taken; never a decimal without a unit.
pub(crate) fn humanize(value: u64, divisor: u64) -> String {
    let units = if divisor == 1000 { ["", "k", "M", "G", "T", "P", "E"] } else { ["", "K", "M", "G", "T", "P", "E"] };
    let mut scale = 0;
    let mut whole = value;
    while whole >= divisor && scale < units.len() - 1 {
        whole /= divisor;
        scale += 1;
    }
    // Hundredths, each division truncating as the original's does.
    let mut hundredths = u128::from(value) * 100;
    for _ in 0..scale {
        hundredths /= u128::from(divisor);
    }
    if scale > 0 && hundredths < 995 {
        let tenths = (hundredths + 5) / 10;
        format!("{}.{}{}", tenths / 10, tenths % 10, units[scale])
    } else {
        format!("{}{}", (hundredths + 50) / 100, units[scale])
    }
}

#[cfg(test)]
mod tests {
    use super::humanize;

    #[test]
    fn figures_of_vmstat() {
        for (value, divisor, expected) in [
            (0, 1024, "0"),
            (999, 1000, "999"),
            (1000, 1000, "1.0k"),
            (1023, 1024, "1023"),
            (1024, 1024, "1.0K"),
            (1536, 1024, "1.5K"),
            (9_949, 1000, "9.9k"),
            (9_950, 1000, "10k"),
            (10_189, 1024, "10K"),
            (376_426, 1000, "376k"),
            (999_999, 1000, "1000k"),
            (1_048_576, 1024, "1.0M"),
            (u64::MAX, 1024, "16E"),
        ] {
            assert_eq!(humanize(value, divisor), expected, "{value}");
        }
    }
}
