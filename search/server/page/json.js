// JSON whose whole numbers are exact: those beyond 2^53, ids often, are BigInts where the browser can write them again.

export function parsed(text) {
  return JSON.parse(text, (name, value, context) => (isRounded(value, context?.source) ? BigInt(context.source) : value));
}

export function written(value) {
  return JSON.stringify(value, (name, one) => (typeof one === "bigint" ? JSON.rawJSON(String(one)) : one));
}

const isRounded = (value, source) =>
  typeof value === "number" && !Number.isSafeInteger(value) && JSON.rawJSON !== undefined && /^-?\d+$/u.test(source ?? "");
