//! Large inputs become several requests, and their answers one answer.
//!
//! Items keep their order: chunk after chunk, each as full as the limits allow. Requests run side by side up to a
//! bound; the first failure ends the call and cancels the rest. Where no endpoint is known to be well, the first request
//! runs alone: a half-open breaker lets one through, and would refuse those beside it and so end the call. An error that names an item by its index in a chunk is
//! rewritten to name it by the caller's index, in the fields and in the text.

use std::ops::Range;

use futures_util::stream::{self, StreamExt as _};

use crate::config::BatchConfig;
use crate::error::ClientError;

/// Ranges of items that fit into one request each. An item that is too large by itself gets a request of its own.
pub(crate) fn chunks(sizes: impl IntoIterator<Item = usize>, max_items: usize, max_bytes: usize) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let (mut start, mut end, mut bytes) = (0, 0, 0_usize);
    for size in sizes {
        let full = end - start >= max_items || bytes.saturating_add(size) > max_bytes;
        if full && end > start {
            ranges.push(start..end);
            (start, bytes) = (end, 0);
        }
        end += 1;
        bytes = bytes.saturating_add(size);
    }
    if end > start {
        ranges.push(start..end);
    }
    ranges
}

/// Runs `request` for every range, `config.max_concurrent` at a time, and hands the answers to `collect` as they come.
/// `list` is the name of the repeated field that was split. With `first_alone` the rest waits for the first answer.
pub(crate) async fn run<T, F>(
    ranges: Vec<Range<usize>>,
    config: BatchConfig,
    list: &str,
    first_alone: bool,
    request: impl Fn(Range<usize>) -> F,
    mut collect: impl FnMut(Range<usize>, T) -> Result<(), ClientError>,
) -> Result<(), ClientError>
where
    F: Future<Output = Result<T, ClientError>>,
{
    let mut ranges = ranges.into_iter();
    if let Some(range) = ranges.by_ref().take(usize::from(first_alone)).next() {
        let answer = request(range.clone()).await;
        let answer = answer.map_err(|error| shift(error, list, range.start))?;
        collect(range, answer)?;
    }
    let requests = ranges.map(|range| {
        let answer = request(range.clone());
        async move { (range, answer.await) }
    });
    let mut answers = std::pin::pin!(stream::iter(requests).buffer_unordered(config.max_concurrent));
    while let Some((range, answer)) = answers.next().await {
        let answer = answer.map_err(|error| shift(error, list, range.start))?;
        collect(range, answer)?;
    }
    Ok(())
}

/// Makes `list[3]` of a chunk that starts at item 4096 into `list[4099]`.
pub(crate) fn shift(error: ClientError, list: &str, start: usize) -> ClientError {
    if start == 0 {
        return error;
    }
    renumber(error, list, &|index| index.checked_add(start))
}

/// Makes `list[3]` of a part of the caller's items into what the caller calls it.
pub(crate) fn renumber(error: ClientError, list: &str, place: &dyn Fn(usize) -> Option<usize>) -> ClientError {
    error.with(|failure| {
        failure.message = renumber_text(&failure.message, list, place);
        for violation in &mut failure.field_violations {
            violation.field = renumber_text(&violation.field, list, place);
            violation.description = renumber_text(&violation.description, list, place);
        }
    })
}

fn renumber_text(text: &str, list: &str, place: &dyn Fn(usize) -> Option<usize>) -> String {
    let needle = format!("{list}[");
    let mut out = String::with_capacity(text.len() + 8);
    let mut rest = text;
    while let Some(at) = rest.find(&needle) {
        let (before, found) = rest.split_at(at + needle.len());
        out.push_str(before);
        let digits = found.bytes().take_while(u8::is_ascii_digit).count();
        let (index, after) = found.split_at(digits);
        // `my_texts[1]` is not `texts[1]`.
        let whole_word = !before[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        match index.parse::<usize>().ok().and_then(place) {
            Some(index) if whole_word && after.starts_with(']') => out.push_str(&index.to_string()),
            _ => out.push_str(index),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::classify::Service;

    proptest! {
        #[test]
        fn chunks_cover_everything_in_order_and_keep_the_limits(
            sizes in prop::collection::vec(0_usize..100, 0..200), max_items in 1_usize..50, max_bytes in 1_usize..300,
        ) {
            let ranges = chunks(sizes.iter().copied(), max_items, max_bytes);
            let flat: Vec<usize> = ranges.iter().cloned().flatten().collect();
            prop_assert_eq!(flat, (0..sizes.len()).collect::<Vec<_>>());
            for range in ranges {
                let bytes: usize = sizes[range.clone()].iter().sum();
                prop_assert!(range.len() <= max_items);
                prop_assert!(bytes <= max_bytes || range.len() == 1);
            }
        }
    }

    #[test]
    fn no_items_need_no_request() {
        assert!(chunks([], 10, 10).is_empty());
    }

    #[test]
    fn an_index_is_reported_as_the_caller_counts() {
        let error = ClientError::invalid(Service::Embedding, "GenerateEmbeddings", "texts[3]", "is empty");
        let shifted = shift(error, "texts", 4096);
        assert_eq!(shifted.field_violations[0].field, "texts[4099]");
        assert_eq!(shifted.message, "texts[4099]: is empty");
    }

    #[test]
    fn only_the_split_list_is_renumbered() {
        let shift_text = |text, list, start| renumber_text(text, list, &|index| index.checked_add(start));
        assert_eq!(
            shift_text("queries[1].documents[3].text", "queries", 64),
            "queries[65].documents[3].text"
        );
        assert_eq!(
            shift_text("my_texts[1] texts[] texts[x] texts[1", "texts", 5),
            "my_texts[1] texts[] texts[x] texts[1"
        );
        assert_eq!(
            shift_text("texts[1] and texts[10]", "texts", 5),
            "texts[6] and texts[15]"
        );
        assert_eq!(shift_text("é texts[0]", "texts", 5), "é texts[5]");
    }

    #[tokio::test]
    async fn requests_run_side_by_side_up_to_the_bound_and_the_first_failure_ends_the_call() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let config = BatchConfig {
            max_items: 1,
            max_bytes: 1,
            max_tokens: 1,
            max_concurrent: 3,
        };
        let request = async |range: Range<usize>| {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            running.fetch_sub(1, Ordering::SeqCst);
            if range.start == 7 {
                return Err(ClientError::invalid(
                    Service::Embedding,
                    "GenerateEmbeddings",
                    "texts[0]",
                    "is bad",
                ));
            }
            Ok(range.start)
        };
        let mut seen = Vec::new();
        let ranges = chunks(std::iter::repeat_n(1, 20), 1, 1);
        let result = run(ranges, config, "texts", false, request, |_, start| {
            seen.push(start);
            Ok(())
        });
        assert_eq!(result.await.unwrap_err().field_violations[0].field, "texts[7]");
        assert_eq!(most.load(Ordering::SeqCst), 3);
        assert!(seen.len() < 12, "requests went on after the failure: {seen:?}");
    }
}
