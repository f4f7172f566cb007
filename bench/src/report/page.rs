//! Pieces of HTML. All text goes through [`escape`]: a kernel's name, say, is not ours.

/// As text or as the value of an attribute in double quotes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // What HTML has no place for.
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

/// An `id` of these words: letters, digits and hyphens.
pub(super) fn identifier(words: &[&str]) -> String {
    let joined = words.join("-");
    let allowed = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    joined.chars().map(allowed).collect()
}

/// A table of text; columns from `numbers` on are numbers. It scrolls by itself where the screen is narrow.
pub(super) struct Table {
    head: Vec<String>,
    numbers: usize,
    rows: String,
}

impl Table {
    /// Without rows.
    pub fn new<H: AsRef<str>>(head: &[H], numbers: usize) -> Self {
        Self {
            head: head.iter().map(|cell| escape(cell.as_ref())).collect(),
            numbers,
            rows: String::new(),
        }
    }

    /// A row; its first cell is its heading.
    pub fn row<C: AsRef<str>>(&mut self, cells: &[C]) {
        self.rows.push_str("<tr>");
        for (index, cell) in cells.iter().enumerate() {
            let cell = escape(cell.as_ref());
            let class = if index >= self.numbers {
                " class=\"n\""
            } else {
                ""
            };
            if index == 0 {
                self.rows
                    .push_str(&format!("<th scope=\"row\">{cell}</th>"));
            } else {
                self.rows.push_str(&format!("<td{class}>{cell}</td>"));
            }
        }
        self.rows.push_str("</tr>\n");
    }

    /// As HTML; nothing if it has no rows.
    pub fn html(self) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let cells = self.head.iter().enumerate().map(|(index, cell)| {
            let class = if index >= self.numbers {
                " class=\"n\""
            } else {
                ""
            };
            format!("<th scope=\"col\"{class}>{cell}</th>")
        });
        let head: String = cells.collect();
        format!(
            "<div class=\"scroll\" tabindex=\"0\"><table><thead><tr>{head}</tr></thead>\n<tbody>{}</tbody></table></div>\n",
            self.rows
        )
    }
}

/// A list of names and values.
pub(super) fn definitions(pairs: &[(&str, String)]) -> String {
    let mut html = String::from("<dl>\n");
    for (name, value) in pairs {
        html.push_str(&format!(
            "<dt>{}</dt><dd>{}</dd>\n",
            escape(name),
            escape(value)
        ));
    }
    html.push_str("</dl>\n");
    html
}

/// A paragraph of text.
pub(super) fn paragraph(text: &str) -> String {
    format!("<p>{}</p>\n", escape(text))
}

/// A list of texts; nothing if there are none.
pub(super) fn list(items: &[String]) -> String {
    if items.is_empty() {
        return String::new();
    }
    let items = items
        .iter()
        .map(|item| format!("<li>{}</li>\n", escape(item)));
    format!("<ul>\n{}</ul>\n", items.collect::<String>())
}

/// The whole page.
pub(super) fn page(title: &str, colours: &str, body: &str) -> String {
    const STYLE: &str = include_str!("style.css");
    // Nothing is loaded and nothing runs, even if a text should ever get past `escape`.
    const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";
    let title = escape(title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n\
         <link rel=\"icon\" href=\"data:,\">\n\
         <style>\n{colours}{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_no_markup() {
        assert_eq!(
            escape("<b a=\"'\">&\0\n"),
            "&lt;b a=&quot;&#39;&quot;&gt;&amp;  "
        );
        assert_eq!(identifier(&["exits", "a b/\"ü"]), "exits-a-b---");
        let mut table = Table::new(&["<i>"], 0);
        table.row(&["</table>"]);
        let html = table.html();
        assert!(html.contains("&lt;i&gt;") && html.contains("&lt;/table&gt;"));
        assert_eq!(Table::new(&["a"], 0).html(), "");
    }
}
