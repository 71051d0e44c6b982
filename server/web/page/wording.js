/** Where a word of the demo model goes in a prompt. It knows prompts like "a red house on grass". */

/** A background as prompts say it, in the words that the model was taught by. */
export function phrase(background) {
  const phrases = {
    sky: "in the sky", night: "at night", grass: "on the grass", desert: "in the desert",
    ocean: "on the ocean", snow: "on snow", sunset: "at sunset", plain: "on a plain background",
  };
  return phrases[background] ?? `on ${background}`;
}

const either = (words) => `(?:${words.join("|")})`;
/** What words are made of, in any language; a hyphen makes two words one. */
const LETTER = "[\\p{L}\\p{M}\\p{N}_-]";
/** As words of their own, of any case. */
const whole = (pattern) => new RegExp(`(?<!${LETTER})${pattern}(?!${LETTER})`, "iu");

const article = (word) => (/^[aeiou]/i.test(word) ? "an" : "a");
const capital = (word) => word[0].toUpperCase() + word.slice(1);
/** `word` with a capital where `model` has one. */
const like = (model, word) => (/^\p{Lu}/u.test(model) ? capital(word) : word);
const plural = (word) => (word === "fish" ? word : `${word}s`);

/** `{start, end, text}`: the part of `prompt` to replace so that it has `word`, one of `group`
 * (colours, things or backgrounds) among the model's `words`. */
export function placed(prompt, word, group, words) {
  if (group === "backgrounds") return background(prompt, word, words);
  const thing = found(prompt, `${either(words.things)}s?`);
  // Green grass is the grass's own, and a plain white background's white is.
  const colour = found(elsewhere(prompt, words), `${either(words.colours)}(?! ${either(words.backgrounds)})`);
  if (group === "things") {
    if (thing) {
      const many = !words.things.includes(thing.text.toLowerCase());
      return instead(prompt, thing, many ? plural(word) : word);
    }
    if (colour) return { start: colour.end, end: colour.end, text: ` ${word}` };
  } else {
    if (colour) return instead(prompt, colour, word);
    if (thing) return instead(prompt, { ...thing, end: thing.start }, `${like(thing.text, word)} `);
  }
  const begins = prompt.search(/\S|$/);
  return { start: begins, end: begins, text: `${article(word)} ${word}${between(prompt.slice(begins), words)}` };
}

function found(prompt, pattern) {
  const match = whole(pattern).exec(prompt);
  return match && { start: match.index, end: match.index + match[0].length, text: match[0] };
}

/** The edit that puts `text` in the place of a part, with the article before it. */
function instead(prompt, { start, end, text: before = "" }, text) {
  const word = end > start ? like(before, text) : text;
  const [, old, space] = /(?<![\p{L}\p{M}\p{N}_-])(an?)(\s+)$/iu.exec(prompt.slice(0, start)) ?? [];
  if (!old) return { start, end, text: word };
  return { start: start - old.length - space.length, end, text: like(old, article(word)) + space + word };
}

/** What comes between a word and the rest of a prompt: nothing says where the word was wanted. */
function between(rest, { backgrounds }) {
  if (rest === "" || place(backgrounds).exec(rest)?.index === 0) return rest && " ";
  return ", ";
}

/** A background with what says where, as in the captions that the model was taught by. */
const place = (backgrounds) => whole(either([
  `(?:on|in|at|by|under|against)(?: (?:a|an|the))?(?: ${LETTER}+)??(?: ${either(backgrounds)})+(?:(?: ${LETTER}+)? (?:background|field|sand))?`,
  `(?:on|against) an?(?: ${LETTER}+){1,2} background`,
  "in an? snowy field",
]));
/** A background that is all there is between two commas. */
const alone = (backgrounds) => new RegExp(`(?<=^\\s*|,\\s*)${either(backgrounds)}(?:(?: ${LETTER}+)? background)?(?=\\s*(?:,|$))`, "iu");

function behind(prompt, { backgrounds }) {
  const match = place(backgrounds).exec(prompt) ?? alone(backgrounds).exec(prompt);
  return match && { start: match.index, end: match.index + match[0].length };
}

/** The prompt with blanks for its background. */
function elsewhere(prompt, words) {
  const { start, end } = behind(prompt, words) ?? { start: 0, end: 0 };
  return prompt.slice(0, start) + " ".repeat(end - start) + prompt.slice(end);
}

function background(prompt, text, words) {
  const part = behind(prompt, words);
  if (part) return { ...part, text };
  // Behind the thing, before whatever else is said.
  const from = found(prompt, `${either(words.things)}s?`)?.end ?? 0;
  const end = from + prompt.slice(from).search(/\s*(?:[,.;:)\]\n]|$)/);
  return { start: end, end, text: prompt.slice(0, end).trim() ? ` ${text}` : text };
}
