#!/bin/sh
# Speaks the protocol of a trainer: takes its place from the environment, writes events to its
# standard output, and misbehaves as SCENARIO says. Steps are taken together by files.
folder=$(dirname "$3")/meeting
mkdir -p "$folder"
total=6

say() { printf '{"v":1,"time_ms":1,"rank":%s,"attempt":%s,%s}\n' "$RANK" "$QVL_ATTEMPT" "$1"; }
first() { [ "$QVL_ATTEMPT" = 1 ]; }
rank() { [ "$RANK" = "$1" ]; }
fail() { say "\"event\":\"failed\",\"exit\":\"$1\",\"message\":\"$2\",\"hint\":null,\"peer\":$4"; exit "$3"; }
save() { [ "$RANK" != 0 ] || { echo "$1" > "$folder/checkpoint"; say "\"event\":\"checkpoint-saved\",\"step\":$1,\"path\":\"$folder/checkpoint\",\"bytes\":2048,\"seconds\":0.1,\"best\":false"; }; }
on_request() { rank 1 || sleep 1; save "$reported"; fail preempted "stopped on request" 85 null; }

echo $$ > "$folder/pid-$QVL_ATTEMPT-$RANK"
echo "rank $RANK port $MASTER_PORT token $QVL_TOKEN" >&2
[ "$SCENARIO" != variables ] || echo "variables ${OF_THE_JOB-none} ${OF_THE_SHELL-none}" >&2
say "\"event\":\"started\",\"pid\":$$,\"world\":$WORLD_SIZE,\"version\":\"1\""
step=$(cat "$folder/checkpoint" 2>/dev/null || echo 0)
reported=$step
trap on_request TERM
[ "$SCENARIO" != deaf ] || trap '' TERM

case $SCENARIO in
noise)
    rank 0 || { i=0; while [ $i -lt 2000 ]; do echo "line $i"; i=$((i + 1)); done >&2
        printf 'not \377 text\nno end' >&2; }
    ;;
data) rank 1 || fail data "sample \`7\` has a box outside 0 to 999" 65 null ;;
transient) fail transient "port taken" 75 null ;;
silent) if first && rank 1; then sleep 600; fi ;;
stopped) if first; then rank 1 && kill -STOP $$; sleep 600; fi ;;
esac

say "\"event\":\"phase\",\"name\":\"train\""
say "\"event\":\"ready\",\"step\":$step,\"total_steps\":$total,\"resumed_from\":null"
other=$((1 - RANK))
while [ "$step" -lt $total ]; do
    step=$((step + 1))
    [ "$SCENARIO" = kill ] && first && rank 1 && [ "$step" = 5 ] && kill -9 $$
    : > "$folder/step-$QVL_ATTEMPT-$RANK-$step"
    until [ -e "$folder/step-$QVL_ATTEMPT-$other-$step" ]; do
        pid=$(cat "$folder/pid-$QVL_ATTEMPT-$other" 2>/dev/null || echo $$)
        # The other may have taken this step and ended in between.
        kill -0 "$pid" 2>/dev/null || [ -e "$folder/step-$QVL_ATTEMPT-$other-$step" ] || fail peer-lost "rank $other went away" 80 "$other"
        sleep 0.02
    done
    case $SCENARIO in long | deaf | orphan) sleep 0.3; total=600 ;; esac
    say "\"event\":\"step\",\"step\":$step,\"total_steps\":$total,\"epoch\":0.5,\"stage\":\"main\",\"loss\":2.5,\"tasks\":{\"grounding\":{\"loss\":2.5,\"content_loss\":2.0,\"tokens\":9}},\"learning_rate\":0.001,\"grad_norm\":1.0,\"samples\":8,\"tokens\":99,\"seconds\":0.05,\"reduce_seconds\":0.0"
    reported=$step
    [ "$step" = 3 ] && save 3
done
rank 0 && say "\"event\":\"exported\",\"path\":\"$folder/adapter\",\"kind\":\"adapter\""
say "\"event\":\"finished\",\"step\":$step,\"seconds\":1.0"
