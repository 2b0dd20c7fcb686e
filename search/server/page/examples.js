// Examples of what hits should be like or unlike.

// An example is one thing, whichever way it counts.
const sameThing = (a, b) => a.id === b.id && a.text === b.text;

// The examples of a state with one more. The first follows a search by words: more like a hit leaves the words, less
// like it keeps them as what the hits should be like.
export function withExample({ examples, q }, one) {
  const words = !examples.length && !one.like && q.trim() ? [{ like: true, text: q }] : [];
  return together([...examples.filter((other) => !sameThing(other, one)), ...words, one]);
}

export function without(examples, one) {
  return together(examples.filter((other) => other !== one));
}

// Examples of what is not wanted say nothing alone.
const together = (examples) => (examples.some((one) => one.like) ? examples : []);
