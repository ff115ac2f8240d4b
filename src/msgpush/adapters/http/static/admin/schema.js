// JSON Schema, as much of it as the API's description has: what is wrong with a value, and where.

const typeOf = (value) =>
  value === null
    ? "null"
    : Array.isArray(value)
      ? "array"
      : typeof value === "number" && Number.isInteger(value)
        ? "integer"
        : typeof value;
const isType = (value, type) => typeOf(value) === type || (type === "number" && typeof value === "number");
const escape = (name) => name.replaceAll("~", "~0").replaceAll("/", "~1");
const patterns = new Map();
function pattern(source) {
  if (!patterns.has(source)) patterns.set(source, new RegExp(source, "u"));
  return patterns.get(source);
}

const TIME = /^(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.\d+)?(?:[Zz]|[+-](\d\d):(\d\d))$/;
/** Whether a text is a date-time of RFC 3339 of the years 1 to 9999; second 60 is a leap second. */
function isTime(text) {
  const found = TIME.exec(text);
  if (!found) return false;
  const [year, month, day, hour, minute, second, hours = 0, minutes = 0] = found.slice(1).map((each) => each && +each);
  // Day 0 of the next month is the last one of this.
  const days = new Date(Date.UTC(2000 + (year % 400), month, 0)).getUTCDate();
  if (year < 1 || month < 1 || month > 12 || day < 1 || day > days) return false;
  return hour < 24 && minute < 60 && second <= 60 && hours < 24 && minutes < 60;
}

/**
 * The faults of a value: each has a JSON pointer, the key of a text that says what is wrong, and what goes into that.
 * @param {object} schema
 * @param {any} value
 * @param {object} document where references lead to
 */
export function faultsOf(schema, value, document, pointer = "") {
  const found = [];
  const add = (key, given = {}, at = pointer) => found.push({ pointer: at, key: `schema.${key}`, given });
  const inner = (each, what, at = pointer) => found.push(...faultsOf(each, what, document, at));
  const passes = (each) => !faultsOf(each, value, document, pointer).length;

  if (schema.$ref)
    inner(
      schema.$ref
        .slice(2)
        .split("/")
        .reduce((node, name) => node[name], document),
      value,
    );
  if (schema.type) {
    const types = [schema.type].flat();
    if (!types.some((type) => isType(value, type))) {
      add("type", { allowed: types.filter((type) => type !== "null").join(", ") });
      return found;
    }
  }
  if (schema.enum && !schema.enum.includes(value)) add("enum", { allowed: schema.enum.join(", ") });
  if ("const" in schema && schema.const !== value) add("enum", { allowed: JSON.stringify(schema.const) });

  if (typeof value === "string") {
    const { length } = [...value];
    if (length < schema.minLength) add("short", { n: schema.minLength });
    if (length > schema.maxLength) add("long", { n: schema.maxLength });
    if (schema.pattern && !pattern(schema.pattern).test(value)) add("pattern", { pattern: schema.pattern });
    if (schema.format === "date-time" && !isTime(value)) add("time");
  }
  if (typeof value === "number") {
    if (value < schema.minimum) add("least", { n: schema.minimum });
    if (value > schema.maximum) add("most", { n: schema.maximum });
  }
  if (Array.isArray(value)) {
    if (value.length < schema.minItems) add("few", { n: schema.minItems });
    if (value.length > schema.maxItems) add("many", { n: schema.maxItems });
    if (schema.items) value.forEach((each, i) => inner(schema.items, each, `${pointer}/${i}`));
  } else if (typeOf(value) === "object") object(schema, value, pointer, add, inner);

  for (const each of schema.allOf ?? []) inner(each, value);
  for (const name of ["anyOf", "oneOf"]) {
    if (!schema[name] || schema[name].some(passes)) continue;
    // Those of the form that was meant: of the value's type, if there is one, with the fewest faults.
    const each = schema[name].map((form) => faultsOf(form, value, document, pointer));
    const meant = each.filter((faults) => !faults.some((f) => f.pointer === pointer && f.key === "schema.type"));
    found.push(
      ...(meant.length ? meant : each).reduce((least, faults) => (faults.length < least.length ? faults : least)),
    );
  }
  if (schema.not && passes(schema.not)) add("not");
  if (schema.if) {
    const branch = passes(schema.if) ? schema.then : schema.else;
    if (branch) inner(branch, value);
  }
  return found;
}

function object(schema, value, pointer, add, inner) {
  const names = Object.keys(value);
  if (names.length < schema.minProperties) add("few", { n: schema.minProperties });
  if (names.length > schema.maxProperties) add("many", { n: schema.maxProperties });
  for (const name of schema.required ?? []) if (!(name in value)) add("required", {}, `${pointer}/${escape(name)}`);
  for (const name of names) {
    const at = `${pointer}/${escape(name)}`;
    let known = false;
    if (Object.hasOwn(schema.properties ?? {}, name)) {
      known = true;
      inner(schema.properties[name], value[name], at);
    }
    for (const [source, each] of Object.entries(schema.patternProperties ?? {}))
      if (pattern(source).test(name)) {
        known = true;
        inner(each, value[name], at);
      }
    if (known || schema.additionalProperties === undefined) continue;
    if (schema.additionalProperties === false) add("unknown", {}, at);
    else if (schema.additionalProperties.type === "null" && value[name] !== null) add("unknown", {}, at);
    else inner(schema.additionalProperties, value[name], at);
  }
}
