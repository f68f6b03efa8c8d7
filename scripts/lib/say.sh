# shellcheck shell=bash
#
# How our scripts speak: one plain line per thing that happened, in English, on standard error, so that standard output
# stays free for results. Sourced, never run.

# say WORDS…: one line of progress.
say() { printf '%s\n' "$*" >&2; }

# warn WORDS…: something is not as it should be, and the script goes on.
warn() { printf 'warning: %s\n' "$*" >&2; }

# die WORDS…: the script cannot go on; the words name the thing, the value and the way out.
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# now_ms: a clock for measuring, in milliseconds.
now_ms() { echo $(($(date +%s%N) / 1000000)); }

# seconds_since MS: the time since a now_ms, as seconds with one decimal.
seconds_since() {
    local tenths=$((($(now_ms) - $1) / 100))
    echo "$((tenths / 10)).$((tenths % 10))"
}

# human BYTES: a size that a person reads at a glance.
human() { numfmt --to=iec-i --suffix=B --format='%.1f' -- "$1"; }
