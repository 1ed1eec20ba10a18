#!/bin/sh
# A rank that writes lines, and notes behind each that it was written, until it or its reader dies.
i=0
while echo "$$-$i" >&2; do
    echo "$(date +%s%3N) $RANK $$-$i" >> "$NOTES"
    i=$((i + 1))
    [ $((i % 4)) != 0 ] || sleep 0.01
done
