#!/bin/sh
# A rank that writes lines, and notes behind each that it was written, until it or its reader dies.
# The numbers of processes repeat, and so a line tells when its writer began.
begun=$(date +%s%3N)
i=0
while echo "$$-$begun-$i" >&2; do
    echo "$(date +%s%3N) $RANK $$-$begun-$i" >> "$NOTES"
    i=$((i + 1))
    [ $((i % 4)) != 0 ] || sleep 0.01
done
