-- A shop's tables in memory: filled, indexed, joined, changed and thinned out.

CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT, city TEXT);
CREATE TABLE sale (id INTEGER PRIMARY KEY, customer INTEGER, price REAL,
                   note TEXT);

WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
INSERT INTO customer
SELECT i, 'customer ' || (i * 7919 % 20011), 'city ' || (i % 97) FROM n;

WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000)
INSERT INTO sale
SELECT i, i * 31 % 20000 + 1, i * 7919 % 10007 / 8.0,
       substr('a note of a length that differs from sale to sale', 1, i % 50)
FROM n;

CREATE INDEX sale_of_customer ON sale (customer);
CREATE INDEX customer_of_city ON customer (city, name);

SELECT city, count(*), round(sum(price)), group_concat(DISTINCT length(note))
FROM customer JOIN sale ON sale.customer = customer.id
GROUP BY city ORDER BY 3 DESC LIMIT 5;

UPDATE sale SET note = note || upper(note) WHERE id % 3 = 0;
DELETE FROM sale WHERE id % 5 = 0;

WITH ranked AS (
  SELECT customer, price, rank() OVER (PARTITION BY customer
                                       ORDER BY price DESC) AS place
  FROM sale)
SELECT count(*), round(sum(price)) FROM ranked WHERE place <= 2;

SELECT json_group_array(json_object('id', id, 'note', note)) IS NOT NULL
FROM sale WHERE id < 50000;
