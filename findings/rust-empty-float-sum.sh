#!/usr/bin/env bash
# In Rust the sum of no floating-point numbers is minus zero, and is printed with its sign.
#
# Software: rustc 1.95.0, by rustup if it is not the one that is here. No ashlar, no crate.
# Behaviour: `[0.0_f64; 0].iter().sum::<f64>()` is -0.0: it equals 0.0, is_sign_negative() is true, and "{:.2}" prints "-0.00". A fold that begins with 0.0 gives 0.00.
# Wrong guess: "a sum begins with zero, so a total of nothing is 0.00". A list of costs without an entry is then $-0.00.
# Output seen (2026-11-28):
#   sum -0.00 true, fold 0.00 false, equal true
# Ends with 0 if it is so still, with 1 if not.
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/sum.rs" <<'RS'
fn main() {
    let none: [f64; 0] = [];
    let (sum, fold) = (none.iter().sum::<f64>(), none.iter().fold(0.0, |sum, one| sum + one));
    println!("sum {sum:.2} {}, fold {fold:.2} {}, equal {}", sum.is_sign_negative(), fold.is_sign_negative(), sum == fold);
}
RS
compiler=(rustc)
[[ $(rustc --version) == "rustc 1.95.0 "* ]] || compiler=(rustup run --install 1.95.0 rustc)
"${compiler[@]}" -o "$dir/sum" "$dir/sum.rs"
seen=$("$dir/sum")
echo "$seen"
[[ $seen == "sum -0.00 true, fold 0.00 false, equal true" ]]
