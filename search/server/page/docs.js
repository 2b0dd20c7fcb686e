// The OpenAPI document, for reading.

import { byId, element } from "./dom.js";

const named = (reference) => reference.split("/").at(-1);

function typeOf(schema) {
  if (schema.$ref) return named(schema.$ref);
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return choices.map(typeOf).join(" | ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") return `[${schema.items ? typeOf(schema.items) : ""}]`;
  return Array.isArray(schema.type) ? schema.type.join(" | ") : (schema.type ?? "any");
}

function members(schema) {
  if (!schema.properties) return element("pre", { text: JSON.stringify(schema, null, 2) });
  const rows = Object.entries(schema.properties).map(([name, field]) =>
    element("tr", {
      children: [
        element("th", { text: name, attributes: { scope: "row" } }),
        element("td", { text: typeOf(field) }),
        element("td", { text: field.default !== undefined ? `default ${JSON.stringify(field.default)}` : schema.required?.includes(name) ? "required" : "" }),
        element("td", { text: field.description ?? "" }),
      ],
    }),
  );
  return element("table", { children: [element("tbody", { children: rows })] });
}

function operation(method, path, { summary, parameters = [], requestBody, responses }) {
  const parts = [element("h3", { text: `${method.toUpperCase()} ${path}` }), element("p", { text: summary ?? "" })];
  const lines = [
    ...parameters.map((one) => `${one.in} ${one.name}: ${typeOf(one.schema)}${one.required ? ", required" : ""}. ${one.description ?? ""}`),
    ...Object.entries(requestBody?.content ?? {}).map(([kind, { schema }]) => `body ${kind}: ${typeOf(schema)}`),
    ...Object.entries(responses).map(([status, answer]) => {
      const schema = Object.values(answer.content ?? {})[0]?.schema;
      return `${status}: ${answer.description}${schema ? ` ${typeOf(schema)}` : ""}`;
    }),
  ];
  parts.push(element("ul", { children: lines.map((text) => element("li", { text })) }));
  return element("article", { children: parts });
}

async function start() {
  const place = byId("operations");
  try {
    const { paths, components } = await (await fetch(new URL("../openapi.json", import.meta.url))).json();
    place.replaceChildren(
      element("h2", { text: "Routes" }),
      ...Object.entries(paths).flatMap(([path, methods]) =>
        Object.entries(methods).map(([method, described]) => operation(method, path, described)),
      ),
      element("h2", { text: "Schemas" }),
      ...Object.entries(components.schemas).map(([name, schema]) =>
        element("article", {
          children: [element("h3", { text: name }), element("p", { text: schema.description ?? "" }), members(schema)],
        }),
      ),
    );
  } catch {
    place.textContent = "The OpenAPI document cannot be read.";
  }
}

start();
