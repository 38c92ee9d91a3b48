"""The pages that the project's commands write: one self-contained HTML file each, in one look.

page.py puts a report's own markup into the frame (page.html) and the look (page.css), markup.py and charts.py make the
pieces. What a report alone has (its sections, rules, scripts) stays with it.
"""
